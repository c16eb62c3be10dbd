"""What learning consumes. ``B`` pairs, ``L`` tokens of a packed row."""

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
