"""The training of a policy discriminator from beginning to end.

In the run folder: ``training.json`` (whose run it is), ``checkpoints/``, ``model/`` (the policy discriminator),
``adapter/`` (with LoRA), ``result.json``, which is written last, and what the tracker's sinks write.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.checkpoint import write_atomically
from align.errors import UserError
from align.polar.config import PolarTraining
from align.polar.pairs import Pairs, encode_pairs
from align.polar.trainer import NAMES, Plan, build_trainer, count_parameters, make_plan, save_trained, with_adapter
from align.polar.validate import Validation, validate
from align.protocols import Metrics, Tracker
from align.supervised import Checkpoints, Forward, Progress
from rewards.polar.model import PolarSettings, load_encoder, load_polar, polar_settings
from rewards.polar.types import Triple

RESULT_FILE, CLAIM_FILE = "result.json", "training.json"


@dataclass(frozen=True, slots=True)
class PolarOutcome:
    """``pairs`` were trained on in ``steps`` updates of ``batch_size``, ``tokens`` tokens in all, without padding.

    ``validations`` are in order: before the first update, at every ``evaluate_every``, and of the saved model.
    ``truncated`` and ``identical`` are of training pairs (:class:`align.polar.pairs.Pairs`); ``notes`` are sentences
    about what ``auto`` chose. ``model`` and ``adapter`` are folders, the latter None without one.
    """

    steps: int
    pairs: int
    tokens: int
    truncated: int
    identical: int
    lr: float
    batch_size: int
    notes: tuple[str, ...]
    parameters: int
    non_embedding_parameters: int
    validations: tuple[Validation, ...]
    model: Path
    adapter: Path | None


def train(
    config: PolarTraining,
    model: Path,
    triples: Sequence[Triple],
    validation: Sequence[Triple],
    folder: Path,
    *,
    make_tracker: Callable[[int], Any],
) -> PolarOutcome:
    """Trains the policy discriminator in ``model`` on ``triples``, or continues from the last whole checkpoint.

    Pre-training and fine-tuning are the same training: a triple's ``wrapper`` says how it is written. ``make_tracker``
    is given the number of updates and returns a context manager that gives an :class:`align.protocols.Tracker`, such
    as :class:`align.tracking.tracker.RunTracker`. The caller holds the folder's lock; a run that has finished is only
    read. Raises ``UserError`` when there is no pair, or the folder is another run's, and
    :class:`rewards.polar.types.PolarError` for a model or a triple that does not fit.
    """
    settings = _settings(config, model)
    encoder = load_encoder(model, settings)
    pairs = encode_pairs(triples, encoder, "train on")
    heldout = encode_pairs(validation, encoder, "validate on")
    plan = make_plan(config, count_parameters(model), pairs)
    _claim(config, model, pairs, heldout, folder)
    if (folder / RESULT_FILE).exists():
        return _read_result(folder)
    with make_tracker(plan.steps) as tracker:
        run = _Run(config, plan, model, pairs, heldout, settings, folder, tracker)
        validations = run.go()
    outcome = PolarOutcome(
        steps=plan.steps,
        pairs=len(pairs),
        tokens=plan.tokens[-1],
        truncated=pairs.truncated,
        identical=pairs.identical,
        lr=plan.lr,
        batch_size=plan.batch_size,
        notes=plan.notes,
        parameters=plan.size.total,
        non_embedding_parameters=plan.size.non_embedding,
        validations=tuple(validations),
        model=folder / "model",
        adapter=folder / "adapter" if config.lora else None,
    )
    plain = asdict(outcome) | {"model": "model", "adapter": "adapter" if config.lora else None}
    write_atomically(folder / RESULT_FILE, json.dumps(plain, indent=2) + "\n")
    return outcome


class _Run:
    """One training in its folder: what :func:`train` does between the claim and the result."""

    def __init__(
        self,
        config: PolarTraining,
        plan: Plan,
        model: Path,
        pairs: Pairs,
        heldout: Pairs,
        settings: PolarSettings,
        folder: Path,
        tracker: Tracker,
    ) -> None:
        self._config, self._plan, self._start, self._settings = config, plan, model, settings
        self._pairs, self._heldout = pairs, heldout
        self._model, self._adapter = folder / "model", folder / "adapter"
        self._tracker = tracker
        self._validations: list[Validation] = []
        self._checkpoints = Checkpoints(folder / "checkpoints", self._state)

    def go(self) -> list[Validation]:
        """Trains from the newest whole checkpoint to the end; returns all validations of the run."""
        steps, found = self._plan.steps, self._checkpoints.latest()
        if found is None:
            progress, resume = Progress(), None
            counts = {
                "data/pairs": len(self._pairs),
                "data/truncated": self._pairs.truncated,
                "data/identical": self._pairs.identical,
            }
            self._tracker.log(0, counts, self._of_folder(self._start, 0, self._config.adapter))
            self._checkpoints.write(progress)
        else:
            progress, outer, resume = found
            self._tracker.load_state_dict(outer["tracker"])
            self._validations = [Validation(**row) for row in outer["validations"]]
        if progress.step < steps or not self._model.exists():
            with self._tracker.phase("train"):
                self._train(progress, resume)
        self._log(steps, progress.last | self._of_folder(self._model, steps))
        return self._validations

    def _train(self, progress: Progress, resume: Path | None) -> None:
        """A function of its own, so that the float32 weights and moments are gone when the saved model comes."""
        forward = Forward(
            self._log,
            self._checkpoints,
            progress,
            NAMES,
            measure=self._measure,
            measure_every=self._config.evaluate_every,
        )
        trainer = build_trainer(self._config, self._plan, self._start, self._pairs, self._checkpoints.folder, [forward])
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        save_trained(trainer, self._settings, self._config, self._model, self._adapter)

    def _of_folder(self, folder: Path, step: int, adapter: str | None = None) -> dict[str, float]:
        """The validation of a saved model, in the format that it is saved in, with the adapter that it starts with."""
        import torch

        model: Any = load_polar(folder, getattr(torch, self._config.dtype))
        if adapter:
            model = with_adapter(model, Path(adapter), self._config)
        return self._measure(model, step)

    def _measure(self, model: Any, step: int) -> dict[str, float]:
        with self._tracker.phase("evaluate"):
            found = validate(
                model,
                self._heldout,
                self._plan.micro_batch_size,
                step=step,
                tokens=self._plan.tokens[step],
            )
        self._validations.append(found)
        return found.metrics()

    def _log(self, step: int, metrics: Metrics) -> None:
        self._tracker.log(step, metrics, {"data/tokens": self._plan.tokens[step]})

    def _state(self) -> dict[str, Any]:
        return {"tracker": self._tracker.state_dict(), "validations": [asdict(row) for row in self._validations]}


def _settings(config: PolarTraining, model: Path) -> PolarSettings:
    """The model's settings with the lengths of ``config`` where it has some, within the model's positions."""
    from transformers import AutoConfig

    own = polar_settings(model)
    wanted = PolarSettings(
        own.separator,
        own.score_token,
        config.max_length or own.max_length,
        config.max_response_length or own.max_response_length,
    )
    return wanted.fitted(AutoConfig.from_pretrained(str(model)).max_position_embeddings)


def _claim(config: PolarTraining, model: Path, pairs: Pairs, heldout: Pairs, folder: Path) -> None:
    """Takes the folder for this run; raises ``UserError`` when a run with other settings has come further in it."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {"model": str(model.resolve()), "triples": pairs.digest(), "validation": heldout.digest()}
    path, now = folder / CLAIM_FILE, json.loads(json.dumps(config.plain() | digests))
    started = (folder / RESULT_FILE).exists() or any((folder / "checkpoints").glob("state-*.json"))
    if path.exists() and started:
        before = json.loads(path.read_text())
        changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if changed:
            raise UserError(
                f"{folder} belongs to another run: {', '.join(changed)} was different; continue it with its own "
                "settings, or give a new folder"
            )
        return
    write_atomically(path, json.dumps(now, indent=2) + "\n")


def _read_result(folder: Path) -> PolarOutcome:
    plain = json.loads((folder / RESULT_FILE).read_text())
    return PolarOutcome(
        **plain
        | {
            "notes": tuple(plain["notes"]),
            "validations": tuple(Validation(**row) for row in plain["validations"]),
            "model": folder / "model",
            "adapter": folder / "adapter" if plain["adapter"] else None,
        }
    )
