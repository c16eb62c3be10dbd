"""The objectives that a preference learner can minimise: a loss of the family, with its schedules and its needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from align.losses import preference as losses
from align.types import PairLogps

Terms = Mapping[str, Tensor]
"""[B] values by metric name."""


@dataclass(frozen=True, slots=True)
class PairContext:
    """What an objective may need of ``B`` pairs beside their log-probabilities, [B] each.

    ``explored`` says which pairs hold a completion that the exploration bonus is for, and ``explored_is_chosen``
    whether it is the chosen one. ``target`` is the probability that the loss should give to chosen: 1 for hard labels.
    Lengths are in tokens, the end-of-sequence token included. ``step`` is the loop step.
    """

    explored: Tensor
    explored_is_chosen: Tensor
    target: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    step: int


class Objective(Protocol):
    """A loss with its constants. ``__call__`` gives [B] losses and the [B] terms that they are made of."""

    @property
    def separable(self) -> bool:
        """Whether a pair's loss depends on no other pair: then a batch may be cut anywhere."""
        ...

    def beta_at(self, step: int) -> float:
        """Strength of the pull towards the reference policy in a loop step."""
        ...

    def alpha_at(self, step: int) -> float:
        """Weight of the exploration bonus in a loop step; 0 where there is none."""
        ...

    def __call__(self, logps: PairLogps, context: PairContext) -> tuple[Tensor, Terms]: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """A constant, or one value for each loop step from the first on, of which the last holds for ever after.

    The XPO paper's language-model runs lower alpha from 1e-5 to 5e-6 to 0 over their three iterations (App. E).
    """

    value: float
    by_step: tuple[float, ...] = ()

    def at(self, step: int) -> float:
        """The value in loop step ``step``, counted from 1."""
        return self.by_step[min(step, len(self.by_step)) - 1] if self.by_step else self.value


@dataclass(frozen=True, slots=True)
class DPO:
    """Online, iterative or offline DPO (arXiv 2305.18290), depending only on where the pairs come from.

    A soft label makes it the conservative DPO of Mitchell's note, with the labeller's own probability.
    """

    beta: Schedule
    separable: bool = field(default=True, init=False)

    def beta_at(self, step: int) -> float:
        return self.beta.at(step)

    def alpha_at(self, step: int) -> float:
        return 0.0

    def __call__(self, logps: PairLogps, context: PairContext) -> tuple[Tensor, Terms]:
        loss = _preference(logps, context, self.beta.at(context.step))
        return loss, {"loss/preference": loss}


@dataclass(frozen=True, slots=True)
class XPO:
    """DPO plus the exploration bonus of arXiv 2405.21046; pairs without an explored completion carry no bonus."""

    beta: Schedule
    alpha: Schedule
    bonus_clip: float = 500.0
    separable: bool = field(default=True, init=False)

    def beta_at(self, step: int) -> float:
        return self.beta.at(step)

    def alpha_at(self, step: int) -> float:
        return self.alpha.at(step)

    def __call__(self, logps: PairLogps, context: PairContext) -> tuple[Tensor, Terms]:
        preference = _preference(logps, context, self.beta.at(context.step))
        bonus = losses.xpo_bonus(
            *_sides(logps),
            context.explored_is_chosen,
            alpha=self.alpha.at(context.step) * context.explored,
            bonus_clip=self.bonus_clip,
        )
        return preference + bonus, {"loss/preference": preference, "loss/bonus": bonus}


Variant = Literal[
    "ipo",
    "ipo_norm",
    "hinge",
    "robust",
    "cdpo",
    "exo",
    "nca",
    "bco",
    "sppo",
    "apo_zero",
    "apo_down",
    "aot",
    "discopop",
    "simpo",
    "sft",
    "kto",
]


@dataclass(frozen=True, slots=True)
class VariantLoss:
    """A loss of :mod:`align.losses.preference` by its name; ``options`` are its keyword arguments beside ``beta``."""

    variant: Variant
    beta: Schedule
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def separable(self) -> bool:
        return self.variant not in ("aot", "kto")

    def beta_at(self, step: int) -> float:
        return self.beta.at(step)

    def alpha_at(self, step: int) -> float:
        return 0.0

    def __call__(self, logps: PairLogps, context: PairContext) -> tuple[Tensor, Terms]:
        loss = _VARIANTS[self.variant](logps, context, {"beta": self.beta.at(context.step), **self.options})
        return loss, {"loss/preference": loss}


def _preference(logps: PairLogps, context: PairContext, beta: float) -> Tensor:
    if bool((context.target == 1).all()):
        return losses.dpo_loss(*_sides(logps), beta=beta)
    return losses.cdpo_loss(*_sides(logps), beta=beta, label_smoothing=1 - context.target)


def _sides(logps: PairLogps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return logps.policy_chosen, logps.policy_rejected, logps.ref_chosen, logps.ref_rejected


Options = Mapping[str, Any]


def _on_sides(loss: Callable[..., Tensor]) -> Callable[[PairLogps, PairContext, Options], Tensor]:
    return lambda logps, context, options: loss(*_sides(logps), **options)


def _ipo_norm(logps: PairLogps, context: PairContext, options: Options) -> Tensor:
    return losses.ipo_norm_loss(
        *_sides(logps), chosen_length=context.chosen_length, rejected_length=context.rejected_length, **options
    )


def _simpo(logps: PairLogps, context: PairContext, options: Options) -> Tensor:
    return losses.simpo_loss(
        logps.policy_chosen,
        logps.policy_rejected,
        chosen_length=context.chosen_length,
        rejected_length=context.rejected_length,
        **options,
    )


def _sft(logps: PairLogps, context: PairContext, options: Options) -> Tensor:
    return losses.sft_loss(logps.policy_chosen, chosen_length=context.chosen_length)


def _kto(logps: PairLogps, context: PairContext, options: Options) -> Tensor:
    """The reference point is the mean log-ratio of the batch's own completions, at least 0 (nats).

    The paper and TRL take completions of other prompts, which pairs do not hold.
    """
    ratios = torch.cat([logps.policy_chosen - logps.ref_chosen, logps.policy_rejected - logps.ref_rejected])
    return losses.kto_loss(*_sides(logps), reference_point=ratios.detach().mean().clamp(min=0), **options)


_VARIANTS: Mapping[Variant, Callable[[PairLogps, PairContext, Options], Tensor]] = {
    "ipo": _on_sides(losses.ipo_loss),
    "ipo_norm": _ipo_norm,
    "hinge": _on_sides(losses.hinge_loss),
    "robust": _on_sides(losses.robust_loss),
    "cdpo": _on_sides(losses.cdpo_loss),
    "exo": _on_sides(losses.exo_loss),
    "nca": _on_sides(losses.nca_loss),
    "bco": _on_sides(losses.bco_loss),
    "sppo": _on_sides(losses.sppo_loss),
    "apo_zero": _on_sides(losses.apo_zero_loss),
    "apo_down": _on_sides(losses.apo_down_loss),
    "aot": _on_sides(losses.aot_loss),
    "discopop": _on_sides(losses.discopop_loss),
    "simpo": _simpo,
    "sft": _sft,
    "kto": _kto,
}
