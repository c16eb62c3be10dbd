"""What judgement produces: scores or typed failures, and pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class MeteredScorer(Scorer, Protocol):
    """A scorer that measures what it does, and has a state that a checkpoint keeps."""

    def last_metrics(self) -> dict[str, float]:
        """Numbers of the last call of ``score``, for the tracker."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a run must remember of it, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what :meth:`state_dict` gave."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two completions of one prompt, the preferred one first.

    ``margin`` is the score of ``chosen`` minus the score of ``rejected`` (units of the reward; log-odds in nats where a
    judge compared them). It can be negative where a draw or a coin chose.

    Two probabilities that must not be mixed up:

    - ``probability`` is what the labeller believes: that ``chosen`` is the better one. 1 under ``argmax``, the model's
      own under ``bradley_terry`` (below 1/2 where the less likely side was drawn) and ``soft``, 1/2 where a coin broke
      a tie. It is for people and metrics; no loss reads it.
    - ``target`` is what the loss fits: the probability it is to give ``chosen``, one minus cDPO's label smoothing. 1
      wherever the label is hard: ``argmax``, a data set, and ``bradley_terry`` too, whose draw already holds the
      uncertainty (arXiv 2405.21046, Algorithm 1; smoothing it too would count the noise twice). Only under
      ``soft`` it equals ``probability``, and is then at least 1/2.

    ``step`` is the loop step that made the pair.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion
    margin: float
    probability: float
    step: int
    target: float = 1.0
