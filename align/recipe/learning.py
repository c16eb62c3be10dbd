"""Sections about learning: losses, the optimizer, the learner, the buffer."""

from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section


class XPOLoss(Section):
    """Exploratory preference optimization (arXiv 2405.21046, Algorithm 1)."""

    type: Literal["xpo"]
    """Exploratory preference optimization (arXiv 2405.21046)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the KL regularisation towards the reference policy."""
    alpha: float = Field(default=1e-5, ge=0)
    """Weight of the optimism term; 0 is online DPO."""
    bonus_clip: float = Field(default=500.0, gt=0)
    """The log-ratio inside the optimism term is clipped to this many nats (the paper's appendix E)."""


class DPOLoss(Section):
    """Direct preference optimization (arXiv 2305.18290)."""

    type: Literal["dpo"]
    """Direct preference optimization (arXiv 2305.18290)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the KL regularisation towards the reference policy."""


Loss = Annotated[XPOLoss | DPOLoss, Field(discriminator="type")]


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
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW and its learning-rate schedule."""
    micro_batch_tokens: int = Field(default=1024, gt=0)
    """Most tokens of one forward and backward pass; memory grows with it, results do not change."""
    attention: Literal["eager", "sdpa"] = "eager"
    """How attention is computed: `eager` is quicker on the CPU for short sequences, `sdpa` needs less memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


Learner = PreferenceLearner


class Mixer(Section):
    """All pairs so far, and what of them the learner sees next."""

    batch_pairs: int = Field(default=64, gt=0)
    """Pairs of one update."""
    replay_ratio: float = Field(default=1.0, ge=0)
    """Old pairs replayed for every new one."""
    capacity: int | None = Field(default=None, gt=0)
    """Pairs that are kept; without a number all are (Algorithm 1)."""
