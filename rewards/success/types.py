"""What judgement makes of an episode. ``T`` environment steps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import Episode


@dataclass(frozen=True, slots=True)
class LabelledEpisode:
    """An episode and what a learner is told about each of its steps.

    ``rewards`` [T] float32 are the rewards to learn from, which need not be the environment's own. ``terminals`` [T]
    bool are true where no value lies beyond the step: the task was judged done after it. A cut (``truncated``) is not
    terminal. ``mc_returns`` [T] float32 are the discounted Monte-Carlo returns-to-go of the behaviour, see
    :func:`rewards.success.returns.monte_carlo_returns`.

    Raises ``ValueError`` when an array has not one entry for each step.
    """

    episode: Episode
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    mc_returns: NDArray[np.float32]

    def __post_init__(self) -> None:
        steps = len(self.episode)
        for name in ("rewards", "terminals", "mc_returns"):
            shape = getattr(self, name).shape
            if shape != (steps,):
                raise ValueError(f"{name} of episode {self.episode.id!r} must have shape ({steps},), got {shape}")

    def __len__(self) -> int:
        """``T``."""
        return len(self.episode)
