"""What judgement produces: scores or typed failures, and pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rollouts.types import Completion, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """No score, and why. It is never turned into a number; the item leaves the batch and is counted."""

    reason: str


Score = float | ScoreFailure
"""Higher is better. Comparable only between completions of one prompt, unless the scorer says otherwise."""


@runtime_checkable
class Scorer(Protocol):
    """Scores every completion of every rollout."""

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        """``result[i][g]`` belongs to ``rollouts[i].completions[g]``; same lengths, always."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two completions of one prompt, the preferred one first.

    ``margin`` is the score of ``chosen`` minus the score of ``rejected``; it can be negative where the label was
    sampled. ``probability`` is the labeller's probability that ``chosen`` is the better one (1 for hard labels).
    ``step`` is the loop step that made the pair.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion
    margin: float
    probability: float
    step: int
