"""TRL's supervised trainers in a run folder: their numbers to our tracker, their checkpoints where a run continues."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback

from align.checkpoint import write_atomically
from align.protocols import Metrics

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class Training(Protocol):
    """Settings that all supervised trainings have."""

    @property
    def weight_decay(self) -> float: ...

    @property
    def max_grad_norm(self) -> float: ...

    @property
    def gradient_checkpointing(self) -> bool: ...

    @property
    def log_every(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...


def common_arguments(
    training: Training, checkpoints: Path, *, lr: float, batch_size: int, micro_batch_size: int, dtype: str, seed: int
) -> dict[str, Any]:
    """Arguments for any of TRL's trainers: on the CPU unless there is a GPU, silent, checkpoints in ``checkpoints``.

    Weights are float32; ``dtype`` bfloat16 means mixed precision.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": batch_size // micro_batch_size,
        "learning_rate": lr,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "seed": seed,
        "data_seed": seed,
        "logging_steps": training.log_every,
        "save_strategy": "steps" if training.checkpoint_every else "no",
        "save_steps": training.checkpoint_every or 1,
        # The one before stays until the next is whole: TRL deletes before our state file is written.
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
    }


@dataclass(slots=True)
class Progress:
    """What a run keeps beside TRL's own checkpoint: see :class:`Checkpoints`."""

    step: int = 0
    last: dict[str, float] = field(default_factory=dict)
    """The numbers of the last update, which are logged together with the evaluation that follows it."""


class Checkpoints:
    """TRL's checkpoints in ``folder``, each with a ``state-N.json`` that is written last and makes it whole.

    Step 0 has a state and no checkpoint. ``outer`` gives what else the run must remember.
    """

    def __init__(self, folder: Path, outer: Callable[[], dict[str, Any]]) -> None:
        self.folder = folder
        self._outer = outer

    def write(self, progress: Progress) -> None:
        """The state of a step, whole or absent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"step": progress.step, "last": progress.last, "outer": self._outer()}
        write_atomically(self._state(progress.step), json.dumps(state) + "\n")

    def latest(self) -> tuple[Progress, dict[str, Any], Path | None] | None:
        """Progress, the outer state and TRL's checkpoint (None at step 0) of the newest whole step; None at first."""
        steps = sorted((int(p.stem.removeprefix("state-")) for p in self.folder.glob("state-*.json")), reverse=True)
        for step in steps:
            checkpoint = self.folder / f"checkpoint-{step}"
            if step == 0 or (checkpoint / "trainer_state.json").exists():
                state = json.loads(self._state(step).read_text())
                return Progress(state["step"], state["last"]), state["outer"], checkpoint if step else None
        return None

    def _state(self, step: int) -> Path:
        return self.folder / f"state-{step}.json"


class Forward(TrainerCallback):
    """Hands TRL's numbers, under the names that ``names`` gives them, to ``log(step, metrics)``; makes checkpoints
    whole.

    Every ``measure_every`` updates (0: never) ``measure(model, step)`` adds its numbers to those of the step. The
    numbers of the last update stay in ``progress.last``: the evaluation that follows belongs to the same step.
    """

    def __init__(
        self,
        log: Callable[[int, Metrics], None],
        checkpoints: Checkpoints,
        progress: Progress,
        names: Mapping[str, str],
        *,
        measure: Callable[[Any, int], Metrics] | None = None,
        measure_every: int = 0,
    ) -> None:
        self._log = log
        self.checkpoints = checkpoints
        self.progress = progress
        self._names = names
        self._measure = measure
        self._every = measure_every if measure else 0

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.progress.step = state.global_step
        if state.global_step >= state.max_steps or self._due(state.global_step):
            control.should_log = True

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        metrics = {ours: float(logs[theirs]) for theirs, ours in self._names.items() if theirs in logs}
        if state.global_step >= state.max_steps:
            self.progress.last = metrics
            return
        if self._measure and self._due(state.global_step):
            metrics |= self._measure(kwargs["model"], state.global_step)
        self._log(state.global_step, metrics)

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.checkpoints.write(self.progress)

    def _due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0
