"""What others answer, made a number or a typed failure: functions and servers may answer anything."""

import math
from typing import Any

from rewards.types import Score, ScoreFailure


def checked_score(value: Any, source: str) -> Score:
    """``value`` as a finite float, or a failure whose reason names ``source``; numbers of numpy and torch count."""
    if value is None:
        return ScoreFailure(f"{source} gave no score")
    number = _number(value)
    if number is None:
        return ScoreFailure(f"{source} gave {type(value).__name__} {str(value)[:80]!r}, not a number")
    return number if math.isfinite(number) else ScoreFailure(f"{source} gave {number}, not a finite number")


def checked_preference(value: Any, source: str) -> Score:
    """``value`` as a probability in [0, 1], or a failure whose reason names ``source``."""
    score = checked_score(value, source)
    if isinstance(score, float) and not 0 <= score <= 1:
        return ScoreFailure(f"{source} gave {score}, not a probability between 0 and 1")
    return score


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
