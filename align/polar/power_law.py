"""Power laws: a straight line through the logarithms, and how sure its slope is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from align.tracking.intervals import T95
from rewards.intervals import Z95


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """``y = coefficient * x ** exponent``, from ``points`` points.

    ``r`` is the correlation of the logarithms and ``r2`` its square. ``interval`` is the 95% interval of the exponent
    by Student's t with the standard error of least squares, for independent errors of equal relative size; it has no
    ends where two points leave no error to measure.
    """

    coefficient: float
    exponent: float
    r: float
    r2: float
    interval: tuple[float, float]
    points: int

    def __call__(self, x: float) -> float:
        return float(self.coefficient * x**self.exponent)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of ``log y`` on ``log x``.

    Raises ``ValueError`` unless there are two different ``x``, and all numbers are above 0 and finite.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} x and {len(y)} y: there must be as many of both")
    if not all(value > 0 and math.isfinite(value) for value in (*x, *y)):
        raise ValueError("a power law is fitted to finite numbers above 0")
    if len(set(x)) < 2:
        raise ValueError("a power law needs points at two different x at least")
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    n = len(u)
    mean_u, mean_v = math.fsum(u) / n, math.fsum(v) / n
    uu = math.fsum((a - mean_u) ** 2 for a in u)
    vv = math.fsum((b - mean_v) ** 2 for b in v)
    uv = math.fsum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    slope = uv / uu
    intercept = mean_v - slope * mean_u
    r = uv / math.sqrt(uu * vv) if vv > 0 else 0.0
    half = math.inf
    if n > 2:
        residual = math.fsum((b - intercept - slope * a) ** 2 for a, b in zip(u, v, strict=True))
        quantile = T95[n - 3] if n - 2 <= len(T95) else Z95
        half = quantile * math.sqrt(residual / (n - 2) / uu)
    return PowerLaw(math.exp(intercept), slope, r, r * r, (slope - half, slope + half), n)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points ``(x, y)`` below which no point with an ``x`` as small lies: the best for each budget, by ``x``."""
    best, kept = math.inf, list[tuple[float, float]]()
    for x, y in sorted(points):
        if y < best:
            best = y
            kept.append((x, y))
    return kept
