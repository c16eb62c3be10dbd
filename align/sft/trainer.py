"""TRL's ``SFTTrainer`` in a run folder: its numbers to our tracker, its checkpoints where a run continues from."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from align.checkpoint import write_atomically
from align.learners.adapters import check_targets, to_peft
from align.protocols import Metrics
from align.sft.config import SFTRun
from align.sft.records import Record, check_lengths, fit_template
from rollouts.models import load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from trl.trainer.sft_trainer import SFTTrainer

NAMES = {
    "loss": "loss/total",
    "learning_rate": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "entropy": "sft/token_entropy",
    "mean_token_accuracy": "sft/token_accuracy",
    "epoch": "sft/epoch",
}
"""TRL's names and ours. Left out: times, which the tracker takes, and ``num_tokens``, which a resume sets to 0."""


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
    """Hands TRL's numbers to ``log(step, metrics)``, and makes checkpoints whole.

    The numbers of the last update stay in ``progress.last``: the evaluation that follows belongs to the same step.
    """

    def __init__(self, log: Callable[[int, Metrics], None], checkpoints: Checkpoints, progress: Progress) -> None:
        self._log = log
        self.checkpoints = checkpoints
        self.progress = progress

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.progress.step = state.global_step
        if state.global_step >= state.max_steps:
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
        metrics = {ours: float(logs[theirs]) for theirs, ours in NAMES.items() if theirs in logs}
        if state.global_step >= state.max_steps:
            self.progress.last = metrics
        else:
            self._log(state.global_step, metrics)

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.checkpoints.write(self.progress)


def build_trainer(
    run: SFTRun, model_path: Path, records: Sequence[Record], checkpoints: Path, callbacks: Sequence[Any] = ()
) -> "SFTTrainer":
    """TRL's trainer for ``records``: loss on completions only, on the CPU unless there is a GPU, and silent.

    The weights are float32, whatever ``run.dtype``; bfloat16 means mixed precision. Raises ``UserError`` when a record
    is longer than ``sft.max_length``.
    """
    import datasets
    import torch
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    sft = run.sft
    tokenizer = load_tokenizer(model_path)
    fitted = fit_template(records, tokenizer)
    check_lengths(fitted, tokenizer, sft.max_length)
    args = SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=sft.micro_batch_size,
        gradient_accumulation_steps=sft.batch_size // sft.micro_batch_size,
        num_train_epochs=sft.epochs,
        learning_rate=sft.lr,
        lr_scheduler_type="constant_with_warmup" if sft.decay == "constant" else sft.decay,
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        max_length=sft.max_length,
        completion_only_loss=True,
        gradient_checkpointing=sft.gradient_checkpointing,
        bf16=run.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=run.seed,
        data_seed=run.seed,
        logging_steps=sft.log_every,
        save_strategy="steps" if sft.checkpoint_every else "no",
        save_steps=sft.checkpoint_every or 1,
        # The one before stays until the next is whole: TRL deletes before our state file is written.
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
    )
    datasets.disable_progress_bars()
    model = load_causal_lm(model_path, torch.float32)
    if sft.lora:
        check_targets(model, sft.lora.target_modules)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_list(fitted),
        processing_class=tokenizer,
        peft_config=to_peft(sft.lora) if sft.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def save_policy(trainer: "SFTTrainer", dtype: str, folder: Path) -> None:
    """The trained model (an adapter merged into it) beside its tokenizer, in ``dtype``; whole or absent."""
    import torch

    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(getattr(torch, dtype)).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def total_steps(run: SFTRun, examples: int) -> int:
    """Updates of the whole training, as the trainer counts them: the last batch of an epoch may be smaller."""
    passes = math.ceil(examples / run.sft.micro_batch_size)
    per_epoch = math.ceil(passes / (run.sft.batch_size // run.sft.micro_batch_size))
    return math.ceil(run.sft.epochs * per_epoch)
