"""What the service counts, and what it learns about the speed of its engine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, final

from rewards.polar.scorer import ItemScore
from rewards.types import ScoreFailure

_FORGET: Final = 0.2
"""The weight of the newest batch in running means."""

_FIRST_RETRY_SECONDS: Final = 1.0
"""What somebody is asked to wait before any batch was measured."""

TOTALS: Final = (
    "requests_total",
    "answered_total",
    "items_total",
    "batches_total",
    "tokens_total",
    "cached_tokens_total",
    "failures_total",
    "deduplicated_total",
    "overloaded_total",
    "deadline_passed_total",
    "cancelled_total",
    "recoveries_total",
    "engine_failures_total",
    "swaps_total",
    "latency_seconds_total",
    "engine_seconds_total",
)


@final
class Meter:
    """Counters, tokens per byte of text, and bytes per second of the engine."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._seconds: dict[str, float] = {"latency_seconds_total": 0.0, "engine_seconds_total": 0.0}
        self._tokens_per_byte = 0.3  # of English, a little too many; corrected by the first batch
        self._bytes_per_second: float | None = None

    def count(self, name: str, by: int = 1) -> None:
        """Adds to one of :data:`TOTALS`."""
        self._totals[name] += by

    def answered(self, seconds: float) -> None:
        """A request was answered this long after it came."""
        self.count("answered_total")
        self._seconds["latency_seconds_total"] += seconds

    def batch(self, scores: Sequence[ItemScore], size: int, seconds: float) -> None:
        """A batch of items of ``size`` bytes took this long."""
        tokens = sum(s.tokens for s in scores)
        failures = sum(isinstance(s.score, ScoreFailure) for s in scores)
        self.count("batches_total")
        self.count("items_total", len(scores))
        self.count("tokens_total", tokens)
        self.count("cached_tokens_total", sum(s.cached_tokens for s in scores))
        self.count("failures_total", failures)
        self._seconds["engine_seconds_total"] += seconds
        # A failed item tells nothing about either.
        if failures == 0 and size > 0 and tokens > 0:
            self._tokens_per_byte += _FORGET * (tokens / size - self._tokens_per_byte)
            rate = size / max(seconds, 1e-6)
            known = self._bytes_per_second
            self._bytes_per_second = rate if known is None else known + _FORGET * (rate - known)

    def bytes_for(self, tokens: int) -> int:
        """About how much text has so many tokens."""
        return max(1, int(tokens / self._tokens_per_byte))

    def seconds_for(self, size: int) -> float:
        """About how long the engine takes for so many bytes."""
        return size / self._bytes_per_second if self._bytes_per_second else _FIRST_RETRY_SECONDS

    def values(self) -> Mapping[str, float]:
        """Every counter."""
        return {name: float(self._seconds.get(name, self._totals[name])) for name in TOTALS}
