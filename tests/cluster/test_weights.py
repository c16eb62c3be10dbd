"""The weight store: what is read is what was written, and files go when they should."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import weights
from cluster.weights import StoreError, WeightStore, open_weights, sweep

DTYPES = list(weights._DTYPES)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 2**32)),
    max_size=6,
)


def make(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Every bit pattern, NaN included; booleans hold 0 and 1 only."""
    count = torch.Size(shape).numel() * torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(tensors)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_is_what_was_written(tmp_path: Path, recipe: Mapping[str, Any]) -> None:
    written = {name: make(*how) for name, how in recipe.items()}
    store = WeightStore(tmp_path)
    read = dict(open_weights(store.publish(written, 1)))
    store.close()
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert bits(read[name]) == bits(tensor)


def test_views_and_parameters_are_written_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    store = WeightStore(tmp_path)
    parameter = torch.nn.Parameter(torch.ones(2))
    read = dict(open_weights(store.publish({"turned": base.t(), "column": base[:, 1], "parameter": parameter}, 1)))
    assert read["turned"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert read["column"].tolist() == [1.0, 4.0]
    assert read["parameter"].tolist() == [1.0, 1.0]


def test_the_newest_versions_are_kept(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, keep=2)
    uris = [store.publish({"a": torch.tensor([float(version)])}, version) for version in range(5)]
    assert len(files(tmp_path)) == 2
    assert [float(dict(open_weights(uri))["a"]) for uri in uris[-2:]] == [3.0, 4.0]
    with pytest.raises(StoreError, match="keeps only its newest versions"):
        dict(open_weights(uris[2]))
    again = store.publish({"a": torch.tensor([40.0])}, 4)
    assert again == uris[4]
    assert [float(dict(open_weights(uri))["a"]) for uri in uris[-2:]] == [3.0, 40.0]


def test_a_mapped_version_outlives_its_file(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, keep=1)
    old = dict(open_weights(store.publish({"a": torch.full((100_000,), 7.0)}, 1)))
    same = dict(open_weights(store.publish({"a": torch.full((100_000,), 8.0)}, 2)))
    store.publish({"a": torch.full((100_000,), 9.0)}, 2)
    store.close()
    assert files(tmp_path) == []
    assert old["a"].unique().tolist() == [7.0]
    assert same["a"].unique().tolist() == [8.0]


def test_a_reader_does_not_copy(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    uri = store.publish({"a": torch.zeros(1_000_000)}, 1)
    read = dict(open_weights(uri))
    address, path = read["a"].data_ptr(), uri.removeprefix("file:")
    spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if path in line]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_close_removes_the_files_and_ends_the_store(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.publish({"a": torch.ones(1)}, 1)
    store.close()
    store.close()
    assert files(tmp_path) == []
    with pytest.raises(StoreError, match="closed"):
        store.publish({"a": torch.ones(1)}, 2)


def owner(folder: Path, end: str) -> str:
    """Publishes in another process, which ends as ``end`` says."""
    code = (
        "import os, pathlib, sys, torch; from cluster.weights import WeightStore;"
        "store = WeightStore(pathlib.Path(sys.argv[1]));"
        "print(store.publish({'a': torch.ones(3)}, 1), flush=True);"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code + end, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip().removeprefix("file:")


def test_files_of_a_killed_owner_are_swept_and_others_are_not(tmp_path: Path) -> None:
    mine = WeightStore(tmp_path, prefix="mine")
    mine.publish({"a": torch.ones(1)}, 1)
    orphan = Path(owner(tmp_path, "os.kill(os.getpid(), 9)"))
    half = orphan.with_name(orphan.name.replace("-v1.", "-v2.") + ".tmp")
    half.write_bytes(b"half")
    foreign = orphan.with_name(orphan.name.replace(weights._host(), "0" * 8))
    shutil.copy(orphan, foreign)
    reused = orphan.with_name(f"polestar-other-{weights._host()}-{os.getpid()}-1-v1.safetensors")
    shutil.copy(orphan, reused)  # this process's number, another one's start
    bystander = tmp_path / "polestar-notes-v1.safetensors"
    bystander.write_bytes(b"")
    assert orphan.exists()
    WeightStore(tmp_path, prefix="next")
    assert not orphan.exists() and not half.exists() and not reused.exists()
    assert foreign.exists() and bystander.exists()
    assert len([name for name in files(tmp_path) if name.startswith("polestar-mine-")]) == 1
    assert sweep(tmp_path) == []


def test_an_owner_that_ends_leaves_nothing(tmp_path: Path) -> None:
    assert owner(tmp_path, "pass").endswith("-v1.safetensors")
    assert files(tmp_path) == []


def test_no_room_is_one_line_with_numbers_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    store = WeightStore(tmp_path)
    first = store.publish({"a": torch.ones(1)}, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"needs 4\d\d\d bytes in .*, 1000 are free: make it larger") as caught:
        store.publish({"a": torch.ones(1000)}, 2)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="bytes in"):
        store.publish({"a": torch.ones(1000)}, 2)
    assert [f"file:{tmp_path / name}" for name in files(tmp_path)] == [first]
    assert dict(open_weights(first))["a"].tolist() == [1.0]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a writable folder"):
        WeightStore(tmp_path / "absent")
    with pytest.raises(ValueError, match="keep must be at least 1"):
        WeightStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match="prefix"):
        WeightStore(tmp_path, prefix="a/b")
    with pytest.raises(StoreError, match=r"tensor 'z' has dtype torch\.complex128"):
        WeightStore(tmp_path).publish({"z": torch.zeros(1, dtype=torch.complex128)}, 1)
    with pytest.raises(StoreError, match="expected a file: URI"):
        dict(open_weights("nccl:group"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 20)
    with pytest.raises(StoreError, match="not a whole safetensors file"):
        dict(open_weights(f"file:{broken}"))
    assert files(tmp_path) == ["broken.safetensors"]
