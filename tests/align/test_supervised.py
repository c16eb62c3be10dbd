"""Checkpoints that are whole or not there."""

from pathlib import Path

from align.supervised import Checkpoints, Progress


def test_a_checkpoint_without_its_state_is_not_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, lambda: {"kept": 1})
    assert checkpoints.latest() is None
    checkpoints.write(Progress())
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    # 8 was cut off before its state was written; 4 has been completed, and 2 deleted since.
    checkpoints.write(Progress(2, {"loss/total": 3.0}))
    checkpoints.write(Progress(4, {"loss/total": 2.0}))
    found = checkpoints.latest()
    assert found == (Progress(4, {"loss/total": 2.0}), {"kept": 1}, tmp_path / "checkpoint-4")
