"""Several engines as one: requests are dealt out, weights go to all."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.types import WeightUpdate

T = TypeVar("T")
ResultT = TypeVar("ResultT")


class EngineGroup:
    """Implements :class:`rollouts.engines.base.Engine` over replicas that each live in a process of their own.

    Calls run at the same time, one thread for each replica. A call fails when one replica's does, after all have
    ended.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines:
            raise ValueError("a group needs at least one engine")
        self._engines = tuple(engines)
        self._pool = ThreadPoolExecutor(len(engines), thread_name_prefix="engine")

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        return self._deal(requests, lambda engine, share: engine.generate(share, params))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        return self._deal(sequences, lambda engine, share: engine.logprobs(share))

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        """The worst of each measurement over the replicas."""
        reports = self._all(lambda engine: engine.load_weights(update))
        return {name: max(report[name] for report in reports) for name in reports[0]}

    def version(self) -> int:
        """The oldest version that a replica holds."""
        return min(self._all(lambda engine: engine.version()))

    def max_context(self) -> int:
        return min(engine.max_context() for engine in self._engines)

    def rebuild(self) -> None:
        self._all(lambda engine: engine.rebuild())

    def close(self) -> None:
        self._all(lambda engine: engine.close())
        self._pool.shutdown()

    def _all(self, call: Callable[[Engine], ResultT]) -> list[ResultT]:
        futures = [self._pool.submit(call, engine) for engine in self._engines]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def _deal(self, items: Sequence[T], call: Callable[[Engine, Sequence[T]], list[ResultT]]) -> list[ResultT]:
        """Contiguous shares whose sizes differ by at most one, so that samples of one prompt stay together."""
        count = len(self._engines)
        bounds = [len(items) * i // count for i in range(count + 1)]
        shares = {engine: items[bounds[i] : bounds[i + 1]] for i, engine in enumerate(self._engines)}
        return [result for results in self._all(lambda engine: call(engine, shares[engine])) for result in results]
