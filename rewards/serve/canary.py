"""A pair whose order is known: a model that gets it wrong may answer, but is not ready."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem


@dataclass(frozen=True, slots=True)
class Canary:
    """``better`` must score above ``worse``, and both must have finite scores."""

    better: PolarItem
    worse: PolarItem

    def items(self) -> tuple[PolarItem, PolarItem]:
        """What to score."""
        return self.better, self.worse

    def verdict(self, scores: Sequence[ItemScore]) -> str | None:
        """What is wrong with the scores of :meth:`items`, in words; None when they are right."""
        values = [s.score for s in scores]
        if len(values) != 2:
            return f"the scorer gave {len(values)} scores for 2 items"
        better, worse = values
        if not isinstance(better, float) or not isinstance(worse, float):
            return f"the canary pair has no scores: {better}, {worse}"
        if not (math.isfinite(better) and math.isfinite(worse) and better > worse):
            return f"the canary pair is in the wrong order: {better:g} where the answer is right, {worse:g} where wrong"
        return None


def _asked(output: str) -> PolarItem:
    reference = "The capital of France is Paris. It lies on the river Seine."
    return PolarItem(prompt="What is the capital of France?", reference=reference, output=output)


DEFAULT_CANARY: Final = Canary(
    better=_asked("The capital of France is Paris. It lies on the river Seine."),
    worse=_asked("bananas bananas bananas 7 7 7 I have no idea, ask somebody else"),
)
"""The reference itself, and nonsense."""
