"""Honest probabilities and thresholds, from held-out examples."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.success.errors import SuccessError

SHARPEST, FLATTEST = 0.25, 1000.0
"""Limits of the temperature: perfectly separated examples would take it to 0."""


def fit_temperature(logits: ArrayLike, done: ArrayLike) -> float:
    """The temperature that minimises the negative log-likelihood of ``sigmoid(logits / temperature)``.

    Both classes weigh the same, as in training: the probabilities are those at even odds. With ``s = 1/temperature``
    the loss is convex, and its derivative ``mean z (sigmoid(s z) - y)`` is bisected. Held-out logits only (Guo et al.
    2017, arXiv 1706.04599). Raises :class:`SuccessError` where a class is missing.
    """
    z, y, weights = _balanced(logits, done)

    def slope(inverse: float) -> float:
        return float(np.sum(weights * z * (sigmoid(inverse * z) - y)))

    low, high = 1 / FLATTEST, 1 / SHARPEST
    if slope(high) <= 0:
        return SHARPEST
    if slope(low) >= 0:
        return FLATTEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def choose_threshold(
    probabilities: ArrayLike, done: ArrayLike, max_false_positive_rate: float, least: float = 0.5
) -> float:
    """The lowest threshold, at least ``least``, at which no more than that share of the undone examples is called done.

    It lies halfway, in log-odds, between the highest score that must stay below and the next one above, since examples
    to come scatter around those at hand; halfway to a score of 1 where nothing lies above. With fewer than
    ``1 / max_false_positive_rate`` undone examples not a single one may pass. Raises :class:`SuccessError` where a
    class is missing.
    """
    if not 0 <= max_false_positive_rate < 1:
        raise ValueError(f"max_false_positive_rate must be at least 0 and below 1, got {max_false_positive_rate}")
    p = np.asarray(probabilities, np.float64)
    truth = np.asarray(done, np.bool_)
    _require_both(truth)
    undone = np.sort(p[~truth])[::-1]
    barred = float(undone[math.floor(max_false_positive_rate * len(undone) + 1e-9)])
    above = p[p > barred]
    after = float(above.min()) if len(above) else 1.0
    halfway = float(sigmoid(np.asarray((_logit(barred) + _logit(after)) / 2)))
    # Where the two are neighbours among the floating-point numbers, halfway is rounded to the lower one.
    return max(least, halfway, float(np.nextafter(barred, 2.0)))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without overflow at either end."""
    small = np.exp(-np.abs(x))
    made: NDArray[np.float64] = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return made


def _logit(p: float) -> float:
    inside = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(inside / (1 - inside))


def _balanced(
    logits: ArrayLike, done: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    z, y = np.asarray(logits, np.float64), np.asarray(done, np.bool_)
    _require_both(y)
    return z, y.astype(np.float64), np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())


def _require_both(done: NDArray[np.bool_]) -> None:
    if done.all() or not done.any():
        missing = "undone" if done.all() else "done"
        raise SuccessError(f"no held-out example shows the task {missing}; give demonstrations and failures")
