"""Sections about learning: losses, the optimizer, the learner, the buffer."""

from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section

Beta = Annotated[float, Field(gt=0)]
Alpha = Annotated[float, Field(ge=0)]
BySteps = Annotated[tuple[Beta, ...], Field(strict=False)]


class ReferenceLoss(Section):
    """What losses that pull towards the reference policy share."""

    beta: Beta = 0.1
    """Strength of the KL regularisation towards the reference policy."""
    beta_schedule: BySteps = ()
    """One value of beta for each loop step, of which the last holds for all later ones; in place of `beta`."""


class XPOLoss(ReferenceLoss):
    """Exploratory preference optimization (arXiv 2405.21046, Algorithm 1): the bonus is on reference-policy samples."""

    type: Literal["xpo"]
    """Exploratory preference optimization (arXiv 2405.21046, Algorithm 1)."""
    alpha: Alpha = 1e-5
    """Weight of the optimism term; 0 is online DPO."""
    alpha_schedule: Annotated[tuple[Alpha, ...], Field(strict=False)] = ()
    """One value of alpha for each loop step, of which the last holds for all later ones; in place of `alpha`."""
    bonus_clip: float = Field(default=500.0, gt=0)
    """The log-ratio inside the optimism term is clipped to this many nats (the paper's appendix E)."""


class XPOOnPolicyLoss(ReferenceLoss):
    """XPO as the paper's language-model runs had it: both samples from the current policy, a few large iterations."""

    type: Literal["xpo_onpolicy"]
    """XPO with both samples from the current policy (Algorithm 2 of arXiv 2405.21046 with pi~ = pi)."""
    alpha_schedule: Annotated[tuple[Alpha, ...], Field(strict=False, min_length=1)] = (1e-5, 5e-6, 0.0)
    """One value of alpha for each loop step (iteration), of which the last holds for all later ones (appendix E)."""
    bonus_clip: float = Field(default=500.0, gt=0)
    """The log-ratio inside the optimism term is clipped to this many nats (the paper's appendix E)."""


class DPOLoss(ReferenceLoss):
    """Direct preference optimization (arXiv 2305.18290): online, iterative or offline, by where the pairs come from."""

    type: Literal["dpo"]
    """Direct preference optimization (arXiv 2305.18290)."""


class VariantLoss(ReferenceLoss):
    """A loss of the DPO family without constants of its own."""

    type: Literal["ipo", "ipo_norm", "hinge", "nca", "bco", "sppo", "apo_zero", "apo_down", "sft", "kto"]
    """Which loss; `align/losses/preference.py` has the formulas and their papers."""


class SmoothedLoss(ReferenceLoss):
    """A loss of the DPO family that reckons with wrong labels."""

    type: Literal["cdpo", "robust", "exo", "aot"]
    """Which loss; `align/losses/preference.py` has the formulas and their papers."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """Probability that a label is wrong; by default 0.1 for `cdpo` and `robust`, 1e-3 for `exo` and 0 for `aot`."""


class DiscoPOPLoss(ReferenceLoss):
    """The loss that a language model discovered (arXiv 2406.08414)."""

    type: Literal["discopop"]
    """Discovered preference optimization (arXiv 2406.08414)."""
    tau: float = Field(default=0.05, gt=0, lt=1)
    """Temperature of the blend between the two parts."""


class SimPOLoss(Section):
    """Simple preference optimization (arXiv 2405.14734): length-normalised, without a reference policy."""

    type: Literal["simpo"]
    """Simple preference optimization (arXiv 2405.14734)."""
    beta: Beta = 2.0
    """Scale of the length-normalised log-probability difference."""
    beta_schedule: BySteps = ()
    """One value of beta for each loop step, of which the last holds for all later ones; in place of `beta`."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin that the difference should have."""


Loss = Annotated[
    XPOLoss | XPOOnPolicyLoss | DPOLoss | VariantLoss | SmoothedLoss | DiscoPOPLoss | SimPOLoss,
    Field(discriminator="type"),
]


Targets = Annotated[tuple[str, ...], Field(strict=False)]


class FullAdapter(Section):
    """No adapter: every weight is trained."""

    type: Literal["full"]
    """Every weight is trained."""


class LoRAAdapter(Section):
    """A low-rank update beside frozen weights (arXiv 2106.09685); the reference policy is the model without it."""

    type: Literal["lora"]
    """Low-rank adaptation (arXiv 2106.09685)."""
    rank: int = Field(default=16, gt=0)
    """Directions of the update of each matrix."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's input that is dropped in training."""
    target_modules: Targets = ()
    """Names, or ends of names, of the linear layers to adapt; empty: all but the head."""


class AdaLoRAAdapter(Section):
    """A low-rank update whose budget of directions moves to where it helps (arXiv 2303.10512)."""

    type: Literal["adalora"]
    """Adaptive budget allocation (arXiv 2303.10512)."""
    init_rank: int = Field(default=12, gt=1)
    """Directions of each matrix at the start."""
    target_rank: int = Field(default=8, gt=0)
    """Directions of each matrix at the end, on average."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / init_rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's input that is dropped in training."""
    target_modules: Targets = ()
    """Names, or ends of names, of the linear layers to adapt; empty: all but the head."""
    tinit: int = Field(default=0, ge=0)
    """Optimiser steps before the first directions go."""
    tfinal: int = Field(default=0, ge=0)
    """Optimiser steps at the end in which the budget rests."""
    delta_t: int = Field(default=1, gt=0)
    """Optimiser steps between two allocations."""
    total_step: int = Field(gt=0)
    """Optimiser steps of the whole schedule."""
    orth_reg_weight: float = Field(default=0.1, ge=0)
    """Weight of the term that keeps the two factors orthogonal."""


Adapter = Annotated[FullAdapter | LoRAAdapter | AdaLoRAAdapter, Field(discriminator="type")]


class Optimizer(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from zero."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to zero after the warm-up."""
    decay_steps: int = Field(default=0, ge=0)
    """Updates over which it falls; `linear` and `cosine` need a number."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""


class PreferenceLearner(Section):
    """Learns from pairs of completions."""

    type: Literal["preference"]
    """Learns from pairs of completions."""
    loss: Loss
    """The objective."""
    adapter: Adapter = Field(default_factory=lambda: FullAdapter(type="full"))
    """What is trained: every weight, or a low-rank update."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW and its learning-rate schedule."""
    micro_batch_tokens: int = Field(default=1024, gt=0)
    """Most tokens of one forward and backward pass; memory grows with it, results do not change."""
    attention: Literal["eager", "sdpa"] = "eager"
    """How attention is computed: `eager` is quicker on the CPU for short sequences, `sdpa` needs less memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    intruders: bool = False
    """At the end, look for singular vectors that training has added (arXiv 2410.21228), and write `intruders.json`."""


Learner = PreferenceLearner


class Mixer(Section):
    """All pairs so far, and what of them the learner sees next."""

    batch_pairs: int = Field(default=64, gt=0)
    """Pairs of one update."""
    replay_ratio: float = Field(default=1.0, ge=0)
    """Old pairs replayed for every new one."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the new and the replayed pairs of a step."""
    capacity: int | None = Field(default=None, gt=0)
    """Pairs that are kept; without a number all are (Algorithm 1)."""
