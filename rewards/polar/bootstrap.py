"""How sure a mean over triples is, when several triples share a prompt."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_DRAWN_AT_ONCE = 4_000_000  # numbers in memory while resampling


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the ends of its two-sided 95% interval; infinite where the data cannot tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """``resamples`` drawn with ``seed``. ``method``: ``bca`` corrects the percentiles for bias and skew (Efron 1987),
    which shares near 0 and 1 and heavy-tailed margins need; ``percentile`` takes them as they are."""

    resamples: int = 5000
    seed: int = 0
    method: Literal["bca", "percentile"] = "bca"

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")
        if self.method not in ("bca", "percentile"):
            raise ValueError(f"method '{self.method}' is unknown; use bca or percentile")


def cluster_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    config: BootstrapConfig | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean of ``values`` [N] with an interval by resampling ``clusters`` [N]: all values of a cluster go together.

    Every value weighs the same, so a cluster weighs by its size. ``bounds`` are the least and the greatest value there
    can be. Where all clusters have the same mean, a bootstrap has no width however few they are; then one cluster at
    each bound is added and a normal interval is taken, as Bonett and Price (2012) do for proportions, and unbounded
    values keep an interval of no width. One cluster alone tells nothing: the interval is ``bounds``.

    Raises ``ValueError`` when there is no value.
    """
    config = config or BootstrapConfig()
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) != len(clusters):
        raise ValueError(f"{numbers.shape} values for {len(clusters)} clusters: there must be one each")
    if not len(numbers):
        raise ValueError("a mean needs at least one value")
    order = {key: place for place, key in enumerate(dict.fromkeys(clusters))}
    places = np.array([order[key] for key in clusters])
    sums: Floats = np.bincount(places, weights=numbers).astype(np.float64)
    sizes = np.bincount(places).astype(np.float64)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) == 1:
        return Estimate(mean, *bounds)
    means = sums / sizes
    if np.allclose(means, means[0], rtol=1e-12, atol=0):
        return Estimate(mean, *_agreed(mean, len(sums), bounds))
    draws = np.sort(_resampled(sums, sizes, config))
    low, high = _levels(draws, mean, sums, sizes) if config.method == "bca" else (0.025, 0.975)
    ends = np.quantile(draws, [low, high])
    return Estimate(mean, max(bounds[0], float(ends[0])), min(bounds[1], float(ends[1])))


def _resampled(sums: Floats, sizes: Floats, config: BootstrapConfig) -> Floats:
    rng = np.random.default_rng(config.seed)
    count = len(sums)
    rows = max(1, _DRAWN_AT_ONCE // count)
    parts = []
    for start in range(0, config.resamples, rows):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, config.resamples - start))
        parts.append((weights @ sums) / (weights @ sizes))
    return np.concatenate(parts)


def _levels(draws: Floats, mean: float, sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Which quantiles of the draws are the ends of the BCa interval (Efron and Tibshirani 1993, equation 14.10)."""
    normal = NormalDist()
    # Draws equal to the mean count half: shares take few values, and the bias would else be that of rounding.
    equal = np.isclose(draws, mean, rtol=1e-12, atol=1e-15)
    below = float(np.mean((draws < mean) & ~equal) + equal.mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / len(draws)), 1 - 1 / len(draws)))
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    gaps = left_out.mean() - left_out
    # The skew has no unit: in units of the largest gap no power of it is too small to be told from 0.
    largest = float(np.abs(gaps).max())
    gaps = gaps / largest if largest > 0 else gaps
    spread = float(np.sum(gaps**2))
    skew = float(np.sum(gaps**3)) / (6 * spread**1.5) if spread > 0 else 0.0

    def level(z: float) -> float:
        return normal.cdf(bias + (bias + z) / (1 - skew * (bias + z)))

    return level(normal.inv_cdf(0.025)), level(normal.inv_cdf(0.975))


def _agreed(mean: float, count: int, bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if math.isinf(low) or math.isinf(high):
        return mean, mean
    centre = (count * mean + low + high) / (count + 2)
    variance = (count * mean**2 + low**2 + high**2) / (count + 2) - centre**2
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance / (count + 2))
    return min(mean, max(low, centre - half)), max(mean, min(high, centre + half))
