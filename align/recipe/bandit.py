"""The recipe of the theory experiments: problems small enough that every quantity is exact."""

from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section
from align.recipe.running import Common


class Bandit(Section):
    """Proposition 2.1 of arXiv 2405.21046: two arms, of which the reference policy hardly ever takes the better one."""

    beta: float = Field(default=0.02, gt=0)
    """Strength of the KL regularisation."""
    c: float = Field(default=0.125, gt=0)
    """The reference policy takes the better arm with probability exp(-c / beta)."""
    reward_a: float = 1.0
    """Reward of the better arm."""
    reward_b: float = 0.5
    """Reward of the other arm."""
    v_max: float = Field(default=1.0, gt=0)
    """The policy class: |log pi / pi_ref| <= v_max / beta."""
    rounds: int = Field(default=250, gt=0)
    """Rounds of a run; the proposition speaks of at most exp(1 / (8 beta)) / 2."""
    runs: int = Field(default=1000, gt=1)
    """Runs with independent randomness; all arms see the same."""
    alpha: float | None = Field(default=None, gt=0)
    """XPO's exploration weight; by default that of the paper's theorem 3.1."""
    alpha_factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = (0.01, 0.1, 10.0)
    """Multiples of alpha that are run besides."""
    gap: float = Field(default=0.125, gt=0)
    """A run is stuck when all its iterates are at least this suboptimal."""


class Sequences(Section):
    """The same question for a small language model, trained by gradient through the real learner and loop."""

    vocabulary: int = Field(default=4, gt=2)
    """Tokens, the end of a sequence among them."""
    length: int = Field(default=3, gt=1)
    """Longest completion, in tokens."""
    rare: float = Field(default=1e-4, gt=0, lt=0.25)
    """The reference policy's probability of a good completion."""
    reward_good: float = 4.0
    """Reward of a good completion."""
    reward_other: float = 0.0
    """Reward of all others."""
    beta: float = Field(default=0.25, gt=0)
    """Strength of the KL regularisation."""
    alpha: float = Field(default=0.03, gt=0)
    """XPO's exploration weight; best just below beta^2 / 2."""
    lr: float = Field(default=4e-3, gt=0)
    """Learning rate."""
    pairs: int = Field(default=32, gt=0)
    """Pairs of a round."""
    batch_pairs: int = Field(default=128, gt=0)
    """Pairs of an update."""
    replay_ratio: float = Field(default=11.0, ge=0)
    """Old pairs replayed for every new one."""
    rounds: int = Field(default=50, gt=0)
    """Rounds of a run."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=2)] = tuple(range(20, 30))
    """Seeds of the runs; all arms see the same."""
    gap: float = Field(default=1.0, gt=0)
    """A run is stuck when all its iterates are at least this suboptimal."""


class BanditRecipe(Common):
    """The theorem at work: does exploration find what the reference policy hardly ever does?"""

    kind: Literal["bandit"]
    """Problems small enough that every quantity is exact."""
    bandit: Bandit = Field(default_factory=Bandit)
    """Proposition 2.1's bandit, with the exact minimiser in every round."""
    sequences: Sequences | None = None
    """A small language model trained by gradient; left out by default."""
