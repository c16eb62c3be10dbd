"""Checkpoints that are whole or not there, and numbers that are handed on."""

from pathlib import Path

from align.protocols import Metrics
from align.supervised import Checkpoints, Forward, Progress


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


def test_forward_measures_when_due() -> None:
    """Only at its own steps, never at the last one, whose evaluation follows."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    logged: list[tuple[int, Metrics]] = []
    checkpoints = Checkpoints(Path("unused"), dict)
    forward = Forward(
        lambda step, metrics: logged.append((step, metrics)),
        checkpoints,
        Progress(),
        {"loss": "loss/total"},
        measure=lambda model, step: {"eval/x": float(step)},
        measure_every=2,
    )
    args, control = TrainingArguments("unused", use_cpu=True), TrainerControl()
    for step in range(1, 5):
        control.should_log = False
        state = TrainerState(global_step=step, max_steps=4)
        forward.on_step_end(args, state, control)
        assert control.should_log == (step in (2, 4))
        forward.on_log(args, state, control, {"loss": 1.0}, model=None)
    assert logged == [
        (1, {"loss/total": 1.0}),
        (2, {"loss/total": 1.0, "eval/x": 2.0}),
        (3, {"loss/total": 1.0}),
    ]
    assert forward.progress.last == {"loss/total": 1.0}
