"""How sure a measured accuracy is. All intervals are two-sided 95%."""

import math
from collections.abc import Sequence

from rewards.intervals import Z95

# Student's t, 97.5% quantile, by degrees of freedom 1 to 30.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """``(mean, low, high)`` of independent runs by Student's t; a single run has an interval without ends."""
    if not values:
        raise ValueError("an interval over seeds needs at least one run")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, -math.inf, math.inf
    freedom = len(values) - 1
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / freedom)
    half = (T95[freedom - 1] if freedom <= len(T95) else Z95) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def accuracy_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """``(difference, low, high)`` of mean accuracy, after minus before, over the same problems in the same order.

    The problems are the same twice, so the interval is paired: it is made of each problem's own difference, and the
    variation between easy and hard problems drops out. The form is Bonett and Price's (2012) for paired proportions:
    one pseudo-problem that improved and one that got worse are added before the normal interval is taken. Against the
    paired bootstrap and the plain t interval it keeps its 95% with few problems, has width when all problems changed
    alike, and needs no random numbers. With answers scored 0 or 1 it is their formula; scores between are allowed.

    ``difference`` is the plain one, while the interval is centred a little closer to zero.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems before and {len(after)} after: they must be the same problems")
    if not before:
        raise ValueError("a difference needs at least one problem")
    if not all(0 <= score <= 1 for score in (*before, *after)):
        raise ValueError("scores must lie between 0 and 1")
    changes = [new - old for old, new in zip(before, after, strict=True)]
    count = len(changes) + 2
    mean = math.fsum(changes) / count
    variance = (math.fsum(change**2 for change in changes) + 2) / count - mean**2
    half = Z95 * math.sqrt(variance / count)
    return math.fsum(changes) / len(changes), max(-1.0, mean - half), min(1.0, mean + half)
