"""TRL's ``SFTTrainer``, set up for a warm start, and the policy that comes of it."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.learners.adapters import check_targets, to_peft
from align.sft.config import SFTRun
from align.sft.records import Record, check_lengths, fit_template
from align.supervised import common_arguments
from rollouts.models import load_causal_lm, load_tokenizer

if TYPE_CHECKING:
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
        **common_arguments(
            sft,
            checkpoints,
            lr=sft.lr,
            batch_size=sft.batch_size,
            micro_batch_size=sft.micro_batch_size,
            dtype=run.dtype,
            seed=run.seed,
        ),
        num_train_epochs=sft.epochs,
        lr_scheduler_type="constant_with_warmup" if sft.decay == "constant" else sft.decay,
        warmup_steps=sft.warmup_steps,
        max_length=sft.max_length,
        completion_only_loss=True,
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
