"""How well scores put things in order."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """The probability that a positive scores above a negative, ties counting half; None where a class is missing."""
    s, y = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    if s.shape != y.shape or s.ndim != 1:
        raise ValueError(f"{s.shape} scores for {y.shape} labels: there must be one each")
    ones, zeros = int(y.sum()), int((~y).sum())
    if not ones or not zeros:
        return None
    return float((average_ranks(s)[y].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """The correlation of ranks, -1 to 1, ties sharing theirs; None for fewer than 2 items or where all are equal."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"{a.shape} and {b.shape} items: there must be one each")
    if len(a) < 2:
        return None
    ranks_a, ranks_b = average_ranks(a), average_ranks(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 [N]; equal values share the mean of the ranks that they take."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
