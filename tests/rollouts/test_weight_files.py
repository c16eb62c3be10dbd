"""Safetensors files that hold exactly what a model needs, and those that do not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollouts.engines.weight_files import check_shapes, expected_shapes, file_shapes, tensors

WHOLE = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}
SHAPES = {"a.weight": (2, 3), "b.weight": (4,)}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file(WHOLE, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_shapes_come_from_the_header(whole: Path) -> None:
    assert file_shapes(whole) == SHAPES
    assert expected_shapes(whole.parent) == SHAPES
    check_shapes(whole, SHAPES)


def test_the_index_decides_where_weights_are_in_parts(tmp_path: Path) -> None:
    for index, name in enumerate(WHOLE):
        save_file({name: WHOLE[name]}, tmp_path / f"part{index}.safetensors")
    save_file({"stray": torch.ones(1)}, tmp_path / "adapter.safetensors")
    parts = {name: f"part{index}.safetensors" for index, name in enumerate(WHOLE)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert expected_shapes(tmp_path) == SHAPES


def test_tensors_arrive_as_they_were_written(whole: Path) -> None:
    read = dict(tensors(whole))
    assert read.keys() == WHOLE.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in WHOLE.items())


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a.weight": WHOLE["a.weight"]}, "lacks tensors: b.weight"),
        ({**WHOLE, "lm_head.weight": torch.ones(1)}, "has unknown tensors: lm_head.weight"),
        ({**WHOLE, "b.weight": torch.ones(5)}, r"'b.weight' has shape \[5\], the model wants \[4\]"),
        ({**WHOLE, **{f"x{i}": torch.ones(1) for i in range(5)}}, "x0, x1, x2 and 2 more"),
    ],
)
def test_other_tensors_than_the_model_has_are_named(
    tmp_path: Path, held: dict[str, torch.Tensor], message: str
) -> None:
    save_file(held, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        check_shapes(tmp_path / "other.safetensors", SHAPES)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_cut_file_is_named(whole: Path, kept: int) -> None:
    whole.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated"):
        file_shapes(whole)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((20).to_bytes(8, "little") + b"\xff" * 40)
    with pytest.raises(ValueError, match="its header cannot be read"):
        file_shapes(tmp_path / "x")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        expected_shapes(tmp_path)
