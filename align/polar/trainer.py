"""TRL's ``RewardTrainer`` for policy discriminators, and the model that comes of it.

The trainer is TRL's own; it is given token ids, since its tokenisation knows no reference and no score token, no
``max_length``, at which it would leave pairs out without a word, and pairs in the order in which it is to take them
(:func:`align.polar.pairs.training_order`). Both sides of the pairs of a pass are one forward pass. It does not pack
sequences, so that every pair weighs the same (XTuner's packing weighs pairs by how many share a pack), and it does not
read pairs from disk as it goes: all of them are in memory as token ids.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.learners.adapters import AdapterConfig, check_targets, to_peft
from align.polar.config import PolarTraining
from align.polar.hyperparameters import suggest_batch, suggest_lr
from align.polar.pairs import Pairs, training_order
from align.supervised import common_arguments
from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR
from rewards.polar.model import PolarSettings, load_polar, save_polar
from rewards.polar.shipped import describe
from rollouts.models import load_tokenizer, make_atomically

if TYPE_CHECKING:
    from trl.trainer.reward_trainer import RewardTrainer

NAMES = {
    "loss": "loss/total",
    "accuracy": "reward_model/accuracy",
    "margin": "reward_model/margin",
    "mean_reward": "reward_model/mean",
    "learning_rate": "optim/lr",
    "grad_norm": "optim/grad_norm",
}
"""TRL's names and ours. Left out: times, which the tracker takes, ``num_tokens``, which a resume sets to 0 and which
is counted from the order instead, and ``epoch``, which the order has dissolved."""


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a model: all of them, and those that are no embedding (the tokens' rows)."""

    total: int
    non_embedding: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will do: ``order`` of the pairs, ``tokens`` [steps + 1] seen after each update."""

    lr: float
    batch_size: int
    micro_batch_size: int
    order: Sequence[int]
    tokens: Sequence[int]
    size: Size
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return len(self.tokens) - 1


def count_parameters(folder: Path) -> Size:
    """The size of the policy discriminator in ``folder``, without loading it."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(str(folder))
        model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    total = sum(parameter.numel() for parameter in model.parameters())
    return Size(total, total - model.get_input_embeddings().weight.numel())


def make_plan(config: PolarTraining, size: Size, pairs: Pairs) -> Plan:
    """The order, and the numbers that ``auto`` stands for; ``notes`` say what about them is out of the ordinary."""
    counts = pairs.tokens()
    lr, batch, micro, notes = _numbers(config, size, sum(counts) * config.epochs, len(pairs))
    order = training_order(pairs.lengths(), batch=batch, micro=micro, epochs=config.epochs, seed=config.seed)
    seen = [0]
    for start in range(0, len(order), batch):
        seen.append(seen[-1] + sum(counts[index] for index in order[start : start + batch]))
    return Plan(lr, batch, micro, order, seen, size, notes)


def _numbers(config: PolarTraining, size: Size, tokens: float, pairs: int) -> tuple[float, int, int, tuple[str, ...]]:
    """Learning rate, batch, micro-batch, and notes about what ``auto`` chose of them."""
    lr, batch, micro, notes = config.lr, config.batch_size, config.micro_batch_size, list[str]()
    if lr == "auto":
        assert config.backbone_tokens is not None
        lr, more = suggest_lr(size.total, config.backbone_tokens, tokens)
        notes += more
    if batch == "auto":
        fitted, more = suggest_batch(size.total, tokens, pairs)
        notes += more
        micro = min(micro, fitted)
        batch = max(1, round(fitted / micro)) * micro
    return lr, batch, micro, tuple(dict.fromkeys(notes))


def build_trainer(
    config: PolarTraining, plan: Plan, model_path: Path, pairs: Pairs, checkpoints: Path, callbacks: Sequence[Any] = ()
) -> "RewardTrainer":
    """The trainer of ``pairs`` in the order of ``plan``, on the CPU unless there is a GPU, and silent.

    The weights are float32, whatever ``config.dtype``; bfloat16 means mixed precision, and the head is float32 in it.
    With ``config.lora`` the head and the embedding rows of the two special tokens are trained beside the adapter. The
    trainer's Bradley-Terry loss is that of equation 7, with the reference in both sequences.
    """
    import datasets
    import torch
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    args = RewardConfig(
        **common_arguments(
            config,
            checkpoints,
            lr=plan.lr,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            dtype=config.dtype,
            seed=config.seed,
        ),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_ratio},
        warmup_steps=math.ceil(config.warmup_ratio * plan.steps),
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_length=None,
        # Models without dropout are what we train; TRL would switch off an adapter's too.
        disable_dropout=not (config.lora and config.lora.dropout),
    )
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(model_path)
    model: Any = load_polar(model_path, torch.float32)
    if config.adapter:
        model = with_adapter(model, Path(config.adapter), config)
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict(
            {"chosen_ids": list(pairs.chosen), "rejected_ids": list(pairs.rejected)}
        ).select(plan.order),
        processing_class=tokenizer,
        peft_config=_adapter(config.lora, model, tokenizer) if config.lora and not config.adapter else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _adapter(lora: AdapterConfig, model: Any, tokenizer: Any) -> Any:
    check_targets(model, lora.target_modules)
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    rows = sorted(tokenizer.convert_tokens_to_ids(token) for token in (SEPARATOR, SCORE_TOKEN))
    return to_peft(
        lora,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        trainable_token_indices={name.rpartition(".")[2]: rows},
    )


def with_adapter(model: Any, adapter: Path, config: PolarTraining) -> Any:
    """``model`` with a trained adapter on it, head and embedding rows included, to be trained further.

    Raises ``UserError`` where there is none, or one of another form than ``config`` has.
    """
    from peft import PeftConfig, PeftModel

    try:
        found: Any = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise UserError(f"{adapter}: no adapter there; give the 'adapter' folder of a finished LoRA run") from error
    assert config.lora is not None, "the configuration refuses an adapter without it"
    if (found.r, found.lora_alpha) != (config.lora.rank, config.lora.alpha):
        raise UserError(
            f"{adapter} has rank {found.r} and alpha {found.lora_alpha:g}; training.lora says {config.lora.rank} and "
            f"{config.lora.alpha:g}: make them the same"
        )
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)


def save_trained(
    trainer: "RewardTrainer", settings: PolarSettings, config: PolarTraining, model: Path, adapter: Path
) -> None:
    """The trained policy discriminator as the folder ``model``, in ``config.dtype``, with an adapter merged into it.

    The adapter by itself is written to ``adapter`` before, in PEFT's format. Each is whole or absent.
    """
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    if config.lora:

        def write(folder: Path) -> None:
            trained.save_pretrained(folder, save_embedding_layers=False)
            describe(folder, settings, trained.config.num_hidden_layers)

        shutil.rmtree(adapter, ignore_errors=True)
        make_atomically(write, adapter)
        trained = trained.merge_and_unload()
    save_polar(trained, tokenizer, settings, model, dtype=config.dtype)
