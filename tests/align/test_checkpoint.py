"""The run folder: whole checkpoints, one writer, its own recipe."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from align import checkpoint
from align.checkpoint import RunFolder, write_atomically
from align.errors import UserError


class Part:
    def __init__(self, value: float) -> None:
        self.value = torch.full((4,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "names": ["a"], "nested": {"1": 2.5}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["names"] == ["a"] and state["nested"] == {"1": 2.5}
        self.value = state["value"]


def apply(part: Any, function: Any, *args: Any) -> Any:
    return function(part, *args)


RECIPE = {"seed": 0, "schedule": {"total_steps": 5}, "learner": {"beta": 0.1}, "run": {"dir": "x"}}


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    folder = RunFolder(tmp_path / "run")
    folder.open()
    yield folder
    folder.close()


def test_round_trip_and_rotation(folder: RunFolder) -> None:
    assert folder.latest() is None
    for step in (2, 4, 6):
        folder.save(step, {"a": Part(step), "b": Part(-step)}, apply, keep=2)
    names = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000006"]
    a, b = Part(0), Part(0)
    latest = folder.latest()
    assert latest is not None
    assert folder.load(latest, {"a": a, "b": b}, apply) == 6
    assert (a.value[0], b.value[0]) == (6, -6)


def test_a_torn_checkpoint_is_not_the_latest(folder: RunFolder) -> None:
    for step in (2, 4, 6):
        folder.save(step, {"a": Part(step)}, apply, keep=3)
    newest = folder.path / "checkpoints" / "step-000006"
    (newest / "a.pt").write_bytes(b"cut")
    (folder.path / "checkpoints" / "step-000004" / "manifest.json").unlink()
    latest = folder.latest()
    assert latest is not None and latest.name == "step-000002"


def test_a_failure_while_writing_leaves_the_previous_checkpoint(folder: RunFolder) -> None:
    folder.save(2, {"a": Part(2)}, apply, keep=1)

    class Broken(Part):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        folder.save(4, {"a": Part(4), "b": Broken(4)}, apply, keep=1)
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(2, {"a": Part(2)}, apply, keep=1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3})())
    with pytest.raises(UserError, match=r"no space left .*step-000002 is whole, and the same command continues"):
        folder.save(4, {"a": Part(4)}, apply, keep=1)
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000002"]


def test_two_runs_cannot_write_one_folder(folder: RunFolder) -> None:
    program = (
        "import sys; from pathlib import Path; from align.checkpoint import RunFolder; "
        "RunFolder(Path(sys.argv[1])).open()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder.path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "another run is writing" in done.stderr


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set run\.dir to another folder"):
        RunFolder(tmp_path / "file" / "run").open()


def test_another_recipe_is_refused_and_a_longer_one_is_not(folder: RunFolder) -> None:
    folder.claim(RECIPE, "text")
    folder.save(2, {"a": Part(2)}, apply, keep=1)
    longer = {**RECIPE, "schedule": {"total_steps": 9}, "run": {"dir": "y"}}
    folder.claim(longer, "text")
    with pytest.raises(UserError) as error:
        folder.claim({**longer, "learner": {"beta": 0.2}, "seed": 1}, "text")
    assert "seed was 0 and is 1 now" in str(error.value)
    assert "learner.beta was 0.1 and is 0.2 now" in str(error.value)
    assert json.loads((folder.path / "recipe.json").read_text()) == longer


def test_before_the_first_checkpoint_a_folder_may_change_its_recipe(folder: RunFolder) -> None:
    folder.claim(RECIPE, "one")
    folder.claim({**RECIPE, "seed": 3}, "two")
    assert (folder.path / "recipe.yaml").read_text() == "two"


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
