"""What learning consumes. ``B`` pairs or transitions, ``L`` tokens of a packed row."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rewards.types import ScoredPair


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The pairs of one optimiser step; ``is_offline[i]`` says whether ``pairs[i]`` came from a data set."""

    pairs: tuple[ScoredPair, ...]
    is_offline: tuple[bool, ...]
    fresh: int
    """How many of the pairs are seen for the first time; the rest are replayed."""
    step: int
    """The loop step that learns from them."""


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """``B`` pairs, each in one row: prompt, chosen, rejected. The two completions share the prompt's computation.

    ``segments`` [B, L] is 0 on padding, 1 on the prompt, 2 on the chosen and 3 on the rejected completion.
    ``position_ids`` [B, L] count on from the prompt for both completions, so that each sees what it would see alone.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities in nats, [B] each, end-of-sequence token included."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """``B`` transitions of a robot, for one update.

    ``observations`` and ``next_observations`` map the keys of :mod:`rollouts.envs.types` to [B, ...], images as uint8.
    ``instructions`` [B, I] are embeddings of what the robot was told, ``I`` 0 where it is told nothing. ``actions`` are
    [B, A]. ``rewards`` [B] are those of one decision, or the discounted sum of several. ``discounts`` [B] multiply the
    value of the next observation: gamma to the number of those decisions, 0 where the task is over; a cut is not an
    end. ``mc_returns`` [B] are the behaviour's Monte-Carlo returns-to-go. ``is_offline`` and ``imitate`` [B] are bool:
    from prior data, and worth imitating. ``policy_versions`` [B] (int64) say which weights acted.
    """

    observations: Mapping[str, Tensor]
    next_observations: Mapping[str, Tensor]
    instructions: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    mc_returns: Tensor
    is_offline: Tensor
    imitate: Tensor
    policy_versions: Tensor
    step: int
    """The loop step that learns from them."""

    def __len__(self) -> int:
        """``B``."""
        return len(self.actions)
