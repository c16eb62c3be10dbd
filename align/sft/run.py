"""A supervised warm start from beginning to end: data, accuracy before, training, accuracy after, the policy's folder.

In the run folder: ``data.jsonl`` (what was trained on, in TRL's format), ``ledger.jsonl`` (explore-execute data: every
draft and its fate), ``checkpoints/``, ``policy/``, and what the tracker's sinks write.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.checkpoint import write_atomically
from align.errors import UserError
from align.sft.config import SFTRun
from align.sft.data import DATA_FILE, prepare
from align.sft.examine import SAMPLED, TWO_PHASE, Examiner
from align.sft.records import Record
from align.sft.trainer import NAMES, build_trainer, save_policy, total_steps
from align.supervised import Checkpoints, Forward, Progress
from align.tracking.tracker import RunTracker
from rollouts.models import resolve
from rollouts.prompts import question_of
from rollouts.types import Prompt


@dataclass(frozen=True, slots=True)
class SFTOutcome:
    """``before`` and ``after`` are the shares of right answers of each held-out problem, None where none was scored.

    ``examples`` were trained on in ``steps`` updates. The other two are the same with a sampled plan and a greedy
    execution, None where the run does not measure that. ``policy`` is the trained model's folder.
    """

    steps: int
    examples: int
    before: Sequence[float | None]
    after: Sequence[float | None]
    two_phase_before: Sequence[float | None] | None
    two_phase_after: Sequence[float | None] | None
    policy: Path


def run(
    config: SFTRun,
    folder: Path,
    *,
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
    make_tracker: Callable[[int], RunTracker],
) -> SFTOutcome:
    """Runs ``config`` in ``folder``, or continues it from the last whole checkpoint there.

    ``train`` are the prompts that answers are made for (not used for ``jsonl`` data). What asks a question of
    ``heldout`` is left out. ``make_tracker`` is given the number of updates. The caller holds the folder's lock. Raises
    ``UserError``, and what :func:`rollouts.models.resolve` and :mod:`rollouts.prompts` raise.
    """
    claim(config, folder, [question_of(p) for p in (*train, *heldout)])
    model_path = resolve(config.model)
    records, counts = prepare(config, folder, model_path, train, frozenset(question_of(p) for p in heldout))
    steps = total_steps(config, len(records))
    examiner = Examiner(config, heldout, model_path)
    policy = folder / "policy"
    with make_tracker(steps) as tracker:
        checkpoints = Checkpoints(
            folder / "checkpoints", lambda: {"tracker": tracker.state_dict(), "examiner": examiner.state_dict()}
        )
        found = checkpoints.latest()
        if found is None:
            progress, resume = Progress(), None
            _examine(examiner, model_path, 0, tracker, counts)
            checkpoints.write(progress)
        else:
            progress, outer, resume = found
            tracker.load_state_dict(outer["tracker"])
            examiner.load_state_dict(outer["examiner"])
        if progress.step < steps or not policy.exists():
            with tracker.phase("train"):
                _train(config, model_path, records, Forward(tracker.log, checkpoints, progress, NAMES), resume, policy)
        _examine(examiner, policy, steps, tracker, progress.last)
    sampled, two_phase = examiner.results[SAMPLED], examiner.results[TWO_PHASE]
    return SFTOutcome(
        steps=steps,
        examples=len(records),
        before=sampled["0"],
        after=sampled[str(steps)],
        two_phase_before=two_phase.get("0"),
        two_phase_after=two_phase.get(str(steps)),
        policy=policy,
    )


def claim(config: SFTRun, folder: Path, questions: Sequence[str] = ()) -> None:
    """Takes the folder for this run; raises ``UserError`` when a run with other settings has come further in it.

    ``questions`` are those of all prompts: with others a run would go on with data that is not its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = hashlib.sha256("\0".join(questions).encode()).hexdigest()
    path, now = folder / "sft.json", json.loads(json.dumps({**config.plain(), "prompts": prompts}))
    if path.exists() and any((folder / "checkpoints").glob("state-*.json")):
        before = json.loads(path.read_text())
        changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if changed:
            raise UserError(
                f"{folder} belongs to another run: {', '.join(changed)} was different; continue it with its own "
                "settings, or set run.dir to a new folder"
            )
        return
    # A run that did not come to its first state may have made its data for other settings.
    (folder / DATA_FILE).unlink(missing_ok=True)
    write_atomically(path, json.dumps(now, indent=2) + "\n")


def _examine(examiner: Examiner, policy: Path, step: int, tracker: RunTracker, metrics: dict[str, float]) -> None:
    """Measures the policy and ends the step with that and ``metrics``."""
    with tracker.phase("evaluate"):
        measured = examiner.examine(policy, step)
    tracker.samples(examiner.samples)
    tracker.log(step, metrics, measured)


def _train(
    config: SFTRun, model_path: Path, records: Sequence[Record], forward: Forward, resume: Path | None, policy: Path
) -> None:
    """A function of its own, so that the trainer's float32 weights and moments are gone when the engine comes."""
    trainer = build_trainer(config, model_path, records, forward.checkpoints.folder, [forward])
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_policy(trainer, config.dtype, policy)
