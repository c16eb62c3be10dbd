"""What a server counts, in the text form of Prometheus."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rewards.serve.service import ScoringService

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
_ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 10_000)


class Meters:
    """Requests and items as the app sees them, and what the service says of itself, read when it is asked for.

    Every app has meters of its own, so that two in one process do not mix.
    """

    def __init__(self, service: ScoringService) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = self._counter("requests", "requests answered, by route and status", "route", "status")
        self._errors = self._counter("errors", "requests refused, by the code in the answer", "route", "code")
        self._items = self._counter("items", "items answered, by what became of them", "outcome")
        self._latency = self._histogram("request_seconds", "from the first byte to the last", _LATENCY_S)
        self._sizes = self._histogram("request_items", "items in a request", _ITEMS)
        self._registry.register(_OfService(service))

    def request(self, route: str, status: int, seconds: float, code: str | None) -> None:
        """Counts a request that is over."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)
        if code is not None:
            self._errors.labels(route, code).inc()

    def taken(self, route: str, items: int) -> None:
        """Counts the items of a request that is let in."""
        self._sizes.labels(route).observe(items)

    def answered(self, scored: int, failed: int) -> None:
        """Counts items that have their answers."""
        self._items.labels("scored").inc(scored)
        self._items.labels("failed").inc(failed)

    def exposition(self) -> bytes:
        """Everything, as ``/metrics`` shows it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"polestar_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(f"polestar_{name}", text, ["route"], buckets=tuple(buckets), registry=self._registry)


class _OfService(Collector):
    """The service's own numbers: what only grows there becomes a counter, all else a gauge."""

    def __init__(self, service: ScoringService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        for name, value in self._service.metrics().items():
            yield _family(f"polestar_service_{name}", value)


def _family(name: str, value: float) -> Metric:
    if name.endswith("_total"):
        return CounterMetricFamily(name.removesuffix("_total"), "of the scoring service", value)
    return GaugeMetricFamily(name, "of the scoring service", value)
