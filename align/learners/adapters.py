"""Low-rank adapters: their configuration, and the ways in which ours differ from peft's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from align.errors import UserError

ADAPTER = "default"
"""What peft calls an adapter that was given no name; part of every parameter's name."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A low-rank update ``scale * B A`` beside frozen weights, trained in their place.

    - ``lora`` (arXiv 2106.09685): ``rank`` directions, scale ``alpha / rank``; with ``use_rslora`` (arXiv 2312.03732)
      ``alpha / sqrt(rank)``, under which a larger rank does not learn more slowly.
    - ``adalora`` (arXiv 2303.10512): ``scale * B diag(E) A`` with ``init_rank`` directions, scale
      ``alpha / init_rank``. After ``tinit`` optimiser steps the least important ones go, every ``delta_t`` steps by a
      cubic schedule, until ``tfinal`` steps before ``total_step`` each matrix has ``target_rank`` of them on average;
      ``orth_reg_weight`` weighs the term that keeps A and B orthogonal. ``rank`` and ``use_rslora`` do not apply.

    ``target_modules`` are names, or ends of names, of linear layers; ``all-linear`` is every one but the head.
    ``dropout`` acts on the adapter's input where a gradient is taken, and not where log-probabilities are only read.
    """

    type: Literal["lora", "adalora"] = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    init_rank: int = 12
    target_rank: int = 8
    tinit: int = 0
    tfinal: int = 0
    delta_t: int = 1
    total_step: int = 0
    orth_reg_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the adapter's rank must be at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the adapter's dropout must be in [0, 1), not {self.dropout}")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError(f"target_modules is all-linear or a list of names, not '{self.target_modules}'")
        if self.type == "adalora":
            self._check_budget()

    def _check_budget(self) -> None:
        if self.use_rslora:
            raise ValueError("adalora has a scale of its own; leave use_rslora out, or use type lora")
        if not 1 <= self.target_rank < self.init_rank:
            raise ValueError(
                f"adalora needs 1 <= target_rank < init_rank, not {self.target_rank} and {self.init_rank}; "
                "for a rank that stays as it is use type lora"
            )
        if self.delta_t < 1 or not 0 <= self.tinit < self.total_step - self.tfinal <= self.total_step:
            raise ValueError(
                f"adalora needs delta_t >= 1 and 0 <= tinit < total_step - tfinal, not delta_t {self.delta_t}, "
                f"tinit {self.tinit}, total_step {self.total_step}, tfinal {self.tfinal}"
            )


class GradientDropout(nn.Module):
    """Dropout wherever a gradient is taken; the model itself stays in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=torch.is_grad_enabled())


def to_peft(config: AdapterConfig, **options: Any) -> Any:
    """The same in peft's own configuration classes; ``options`` are more of their arguments, or others."""
    from peft import AdaLoraConfig, LoraConfig

    targets = config.target_modules
    shared: dict[str, Any] = {
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "CAUSAL_LM",
        **options,
    }
    if config.type == "lora":
        return LoraConfig(r=config.rank, use_rslora=config.use_rslora, **shared)
    return AdaLoraConfig(
        init_r=config.init_rank,
        target_r=config.target_rank,
        tinit=config.tinit,
        tfinal=config.tfinal,
        deltaT=config.delta_t,
        total_step=config.total_step,
        orth_reg_weight=config.orth_reg_weight,
        **shared,
    )


def check_targets(model: Any, targets: str | Sequence[str]) -> None:
    """``UserError`` when a name is no linear layer between the embedding and the head of a transformers model.

    Those two stay as they are: they may share one weight, and a loss reads the head's own weight, past any adapter.
    """
    if isinstance(targets, str):
        return
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for target in targets:
        hit = [m for name, m in model.named_modules() if name == target or name.endswith(f".{target}")]
        if any(m is end for m in hit for end in ends):
            raise UserError(f"target_modules: '{target}' is the embedding or the head; name layers between them")
        if not any(isinstance(m, nn.Linear) for m in hit):
            raise UserError(f"target_modules: the model has no linear layer called '{target}'")
