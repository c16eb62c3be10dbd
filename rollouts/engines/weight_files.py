"""Safetensors files as the carrier of weights: what a model folder expects, and whether a file holds exactly that."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


def expected_shapes(folder: Path) -> Shapes:
    """Name and shape of every tensor of a model folder, read from the headers of its safetensors files alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        raise ValueError(f"'{folder}' has no model.safetensors and no model.safetensors.index.json")
    return {name: shape for file in files for name, shape in file_shapes(file).items()}


def file_shapes(file: Path) -> Shapes:
    """Name and shape of every tensor in one safetensors file; ``ValueError`` when it is not whole."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError(f"'{file}' is truncated or no safetensors file ({size} bytes)")
            header = json.loads(stream.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{file}' is no safetensors file: its header cannot be read") from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"'{file}' is truncated: {size} bytes, its header announces {8 + length + end}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def check_shapes(file: Path, expected: Shapes) -> None:
    """``ValueError`` naming the first tensors that are missing from ``file``, too many, or of another shape."""
    found = file_shapes(file)
    for problem, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"'{file}' {problem} tensors: {', '.join(names[:3])}{more}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"'{file}': '{name}' has shape {list(found[name])}, the model wants {list(shape)}")


def tensors(file: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every tensor of a file with its name, as views of the mapped file: valid while the iteration's result lives."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
            yield name, handle.get_tensor(name)
