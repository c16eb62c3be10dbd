"""A scorer in a thread of its own, which recovers when it fails: every item gets a score or a reason."""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, final

from rewards.polar.scorer import ItemScore
from rewards.serve.canary import Canary
from rewards.serve.types import EngineFailure, ItemScorer, ServeItem, ServiceClosed, SwapFailed
from rewards.types import ScoreFailure

ResultT = TypeVar("ResultT")

TRIES: Final = 3
"""How often a batch is given to the engine as a whole, the first time included."""

CLOSE_SECONDS: Final = 30.0
"""How long the end of a scorer is waited for; one that hangs dies with the process."""

PAUSE_SECONDS: Final = 5.0
"""How long an engine that could not be built again is left alone."""


@final
class Worker:
    """One thread that owns the scorer of ``folder``: it opens, drives, rebuilds and closes it, and nobody else does.

    Its methods belong to one thread, too: each queues something and returns at once.
    """

    def __init__(self, open_scorer: Callable[[Path], ItemScorer], folder: Path, canary: Canary | None) -> None:
        self.folder = folder
        self._guarded = _Guarded(open_scorer, folder, canary)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        # A daemon: a call that hangs inside an engine does not keep the process from ending.
        threading.Thread(target=self._run, name=f"scorer-{folder.name}", daemon=True).start()

    @property
    def fault(self) -> str | None:
        """Why the scorer cannot be trusted: it has failed its canary or cannot be built. None when it can."""
        return self._guarded.fault

    @property
    def recoveries(self) -> int:
        """How often the scorer was built again after a failure."""
        return self._guarded.recoveries

    @property
    def engine_failures(self) -> int:
        """How often the scorer has failed, or could not be built again."""
        return self._guarded.failures

    def open(self) -> Future[None]:
        """Builds the scorer and asks the canary; raises what the builder raises."""
        return self._call(self._guarded.open)

    def score(self, items: Sequence[ServeItem]) -> Future[list[ItemScore]]:
        """As many results, in order. It never raises: what has no score has a reason."""
        return self._call(lambda: self._guarded.score(items))

    def check(self) -> Future[str | None]:
        """Asks the canary, or tries to build a scorer that is lost; the new :attr:`fault`."""
        return self._call(self._guarded.check)

    def close(self) -> Future[None]:
        """Closes the scorer and ends the thread, after what was queued before. May be called twice."""
        future = self._call(self._guarded.close)
        if not self._closed:
            self._closed = True
            self._calls.put(None)
        return future

    def _call(self, function: Callable[[], ResultT]) -> "Future[ResultT]":
        future: Future[ResultT] = Future()
        if self._closed:
            future.set_exception(ServiceClosed("the scorer is closed"))
        else:
            self._calls.put((future, function))
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # to the caller, whatever it is: the thread goes on
                future.set_exception(error)


async def opened(open_scorer: Callable[[Path], ItemScorer], folder: Path, canary: Canary | None) -> Worker:
    """A worker that may take over; :class:`SwapFailed` when it cannot be opened or fails its canary."""
    worker = Worker(open_scorer, folder, canary)
    try:
        await asyncio.wrap_future(worker.open())
        if worker.fault is not None:
            raise SwapFailed(f"the weights in {folder} are not served: {worker.fault}")
    except BaseException as error:
        worker.close()
        if isinstance(error, SwapFailed) or not isinstance(error, Exception):
            raise
        raise SwapFailed(f"the weights in {folder} cannot be opened: {_line(error)}") from error
    return worker


async def ended(worker: Worker) -> None:
    """Closes a scorer. One that fails at that, or hangs, does not keep its successor from serving."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_SECONDS):
            await asyncio.wrap_future(worker.close())


@final
class _Guarded:
    """The scorer and what is done when it fails; used by the worker's thread only."""

    def __init__(self, open_scorer: Callable[[Path], ItemScorer], folder: Path, canary: Canary | None) -> None:
        self._open_scorer = open_scorer
        self._folder = folder
        self._canary = canary
        self._scorer: ItemScorer | None = None
        self._lost: str | None = None  # why there is no scorer that works, since the last attempt to build one
        self._attempted = -math.inf
        self._left = 0
        self.fault: str | None = "the scorer is not open yet"
        self.recoveries = 0
        self.failures = 0

    def open(self) -> None:
        self._scorer = self._open_scorer(self._folder)
        self._ask_canary()

    def close(self) -> None:
        self.fault = "the scorer is closed"
        scorer, self._scorer = self._scorer, None
        if scorer is not None:
            scorer.close()

    def check(self) -> str | None:
        if self._lost is None:
            self._ask_canary()
        else:
            self._recover()
        return self.fault

    def score(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        # Enough to find two items that kill the engine among many; a broken engine does not get to fail for each.
        self._left = TRIES + 2 * math.ceil(math.log2(max(len(items), 1)))
        return self._solve(items, TRIES)

    def _solve(self, items: Sequence[ServeItem], tries: int) -> list[ItemScore]:
        reason = ""
        for _ in range(tries):
            if self._left <= 0 or not self._recover():
                return _failed(items, EngineFailure(self._lost or reason or "the engine has failed too often"))
            try:
                return self._attempt(items)
            except ValueError as error:  # the items' fault, the engine's health is not in doubt
                reason = f"cannot be scored: {_line(error)}"
                break
            except (Exception, SystemExit) as error:
                reason = f"the engine failed: {_line(error)}"
                self._lose(reason)
                self._left -= 1
        if len(items) == 1:
            return _failed(items, ScoreFailure(reason))
        middle = len(items) // 2
        return self._solve(items[:middle], 1) + self._solve(items[middle:], 1)

    def _attempt(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        if self._scorer is None:
            raise RuntimeError("the scorer is closed")
        scores = self._scorer.score_items(items)
        if len(scores) != len(items):
            raise RuntimeError(f"it gave {len(scores)} scores for {len(items)} items")
        return [_finite(score) for score in scores]

    def _ask_canary(self) -> None:
        try:
            self.fault = None if self._canary is None else self._canary.verdict(self._attempt(self._canary.items()))
        except (Exception, SystemExit) as error:
            self._lose(f"the engine failed on the canary pair: {_line(error)}")

    def _lose(self, reason: str) -> None:
        self.failures += 1
        self.fault = self._lost = reason

    def _recover(self) -> bool:
        """Builds the scorer again if it is lost; whether there is one."""
        if self._lost is None:
            return True
        if time.monotonic() < self._attempted + PAUSE_SECONDS:
            return False
        try:
            if self._scorer is None:
                self._scorer = self._open_scorer(self._folder)
            else:
                self._scorer.rebuild()
        except (Exception, SystemExit) as error:
            self._attempted = time.monotonic()
            self._lose(f"the engine cannot be built again: {_line(error)}")
            self._abandon()
            return False
        self._lost = None
        self.recoveries += 1
        self._ask_canary()
        return True

    def _abandon(self) -> None:
        """What cannot be rebuilt is closed as far as it can be; the next attempt opens another."""
        scorer, self._scorer = self._scorer, None
        if scorer is not None:
            with contextlib.suppress(Exception):
                scorer.close()


def _failed(items: Sequence[ServeItem], failure: ScoreFailure) -> list[ItemScore]:
    return [ItemScore(failure, frozenset(), 0, 0) for _ in items]


def _finite(score: ItemScore) -> ItemScore:
    value = score.score
    if isinstance(value, ScoreFailure) or math.isfinite(value):
        return score
    return replace(score, score=ScoreFailure(f"the model gave {value}, which is no score"))


def _line(error: BaseException) -> str:
    """One line that says what it was."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:500]
