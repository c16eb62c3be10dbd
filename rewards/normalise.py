"""Scores made comparable for reinforcement learning.

A reward model such as POLAR has neither zero nor scale: its scores have an offset for each prompt and a heavy left
tail. What is learned from should have neither.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

from rewards.errors import RewardError
from rewards.types import Score, ScoreFailure

Kind = Literal["none", "group", "running"]
"""``none``: as it is. ``group``: over the completions of one prompt. ``running``: over all scores there have been."""


class Normaliser:
    """Shifts and scales scores; the caller keeps the raw ones.

    - ``group``: ``(x - mean) / std`` over the numbers of one prompt (population standard deviation, so that a group of
      two becomes -1 and 1); equal scores, a single one among them, become 0. It is the advantage of GRPO (arXiv
      2402.03300, section 4.1.2).
    - ``running``: the same with mean and standard deviation of every number given so far, those of the call included
      (Welford 1962); 0 while they have all been equal. This is the state that a checkpoint must hold.

    What is no finite number passes through untouched and counts nowhere.
    """

    def __init__(self, kind: Kind) -> None:
        if kind not in ("none", "group", "running"):
            raise RewardError(f"normalise '{kind}' is unknown; use none, group or running")
        self._kind: Kind = kind
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # the sum of squared deviations from the mean

    def normalise(self, groups: Sequence[Sequence[Score]]) -> list[list[Score]]:
        """``groups[i][g]`` is the score of completion ``g`` of prompt ``i``; the result has the same lengths."""
        match self._kind:
            case "none":
                return [list(group) for group in groups]
            case "group":
                return [_standardised(group) for group in groups]
            case "running":
                for group in groups:
                    for score in group:
                        if is_number(score):
                            self._add(score)
                return [[self._placed(s) if is_number(s) else s for s in group] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self._kind, "count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["kind"] != self._kind:
            raise RewardError(f"the checkpoint normalised rewards by '{state['kind']}', not '{self._kind}': keep it")
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]

    def _add(self, value: float) -> None:
        self._count += 1
        step = value - self._mean
        self._mean += step / self._count
        self._squares += step * (value - self._mean)

    def _placed(self, value: float) -> float:
        if self._squares <= 0:
            return 0.0
        return (value - self._mean) / math.sqrt(self._squares / self._count)


def is_number(score: Score) -> TypeGuard[float]:
    """Whether there is a finite score."""
    return not isinstance(score, ScoreFailure) and math.isfinite(score)


def _standardised(group: Sequence[Score]) -> list[Score]:
    numbers = [score for score in group if is_number(score)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if low == high:
        return [0.0 if is_number(score) else score for score in group]
    # From 0 to 1 first: the spread then never rounds to zero, nor overflows, whatever the size of the scores.
    width = high - low
    places = [(score - low) / width for score in numbers]
    mean = math.fsum(places) / len(places)
    deviation = math.sqrt(math.fsum((place - mean) ** 2 for place in places) / len(places))
    return [((score - low) / width - mean) / deviation if is_number(score) else score for score in group]
