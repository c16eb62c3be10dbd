"""The parts of a run through the loop: from its newest checkpoint on, and with new ones as they are due."""

from typing import Any

from align.checkpoint import RunFolder
from align.loop import Parts, Schedule
from align.loop import run as loop
from align.recipe import running
from align.tracking.report import SUMMARY_JSON, SUMMARY_TEXT


def restore(parts: Parts, folder: RunFolder, cluster: Any) -> int:
    """Puts every part back to where the newest checkpoint has it; returns its step, 0 where there is none."""
    checkpoint = folder.latest()
    return 0 if checkpoint is None else folder.load(checkpoint, _stateful(parts), cluster.apply)


def run(parts: Parts, schedule: running.Schedule, folder: RunFolder, cluster: Any, start: int) -> None:
    """Goes through the loop from ``start`` on, with the tracker open."""
    # What says that the run has ended is gone before it goes on, so that a kill cannot leave it beside newer steps.
    for name in (SUMMARY_JSON, SUMMARY_TEXT):
        (folder.path / name).unlink(missing_ok=True)
    stateful = _stateful(parts)

    def save(step: int) -> None:
        with parts.tracker.phase("checkpoint"):
            folder.save(step, stateful, cluster.apply, schedule.keep_checkpoints)

    loop(
        parts,
        Schedule(
            total_steps=schedule.total_steps,
            offline_steps=schedule.offline_steps,
            sync_every=schedule.sync_every,
            evaluate_every=schedule.evaluate_every,
            checkpoint_every=schedule.checkpoint_every,
        ),
        save,
        start,
    )


def _stateful(parts: Parts) -> dict[str, Any]:
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}
