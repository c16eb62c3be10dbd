"""The scoring service: requests in, batches to one scorer, weights swapped without dropping a request."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from rewards.polar.scorer import ItemScore
from rewards.serve.batcher import BatchQueue, Job
from rewards.serve.canary import DEFAULT_CANARY, Canary
from rewards.serve.meter import Meter
from rewards.serve.ticket import Lane, Ticket
from rewards.serve.types import (
    DeadlinePassed,
    ItemScorer,
    Overloaded,
    ServeItem,
    ServiceClosed,
    SwapFailed,
    TooManyItems,
)
from rewards.serve.worker import Worker, ended, opened

RECHECK_SECONDS: Final = 15.0
"""How often an idle service that is not ready asks its canary again."""


@dataclass(eq=False, slots=True)
class _Hold:
    """The dispatcher says when the requests of the old weights are done, a swap when the new weights may serve."""

    drained: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)


@final
class ScoringService:
    """Many requests, one scorer. All methods belong to one event loop, none of them blocks it.

    - Batches hold about ``batch_tokens`` tokens, shared prefixes counted once; the first item of one waits for company
      for at most ``max_wait_s`` seconds. Batches take from all requests in turn, so that none starves.
    - Items that share prompt and reference are neighbours in one batch; an item that somebody has asked for already is
      not computed twice. Where an item does not fit the model's context, what is cut from the prompt depends on the
      items it is scored with, and those of one request stay together up to :data:`rewards.serve.batcher.GROUP_ITEMS`.
    - The queue holds ``queue_items`` items and about ``queue_bytes`` of text.
    - A scorer that fails is rebuilt, and the batch tried again: :mod:`rewards.serve.worker`.
    - ``canary`` is a pair that the model must put into the right order before :attr:`ready` is true.
    - ``exclusive``: two scorers do not fit the machine. A swap then closes the old one before it opens the new one, and
      requests wait that long.
    """

    def __init__(
        self,
        open_scorer: Callable[[Path], ItemScorer],
        folder: Path,
        *,
        name: str,
        batch_tokens: int = 8192,
        max_wait_s: float = 0.005,
        queue_items: int = 20_000,
        queue_bytes: int = 256 * 2**20,
        canary: Canary | None = DEFAULT_CANARY,
        exclusive: bool = False,
        stall_s: float = 600.0,
    ) -> None:
        self.name = name
        self._open_scorer, self._folder, self._canary = open_scorer, folder, canary
        self._batch_tokens, self._max_wait_s = batch_tokens, max_wait_s
        self._queue_items, self._queue_bytes = queue_items, queue_bytes
        self._exclusive, self._stall_s = exclusive, stall_s
        self._version = 0
        self._worker: Worker | None = None
        self._lanes = deque([Lane(version=0)])  # the first is served; a second one waits for a swap
        self._open: set[Job] = set()
        self._meter = Meter()
        self._since = 0.0  # when something came into an empty queue
        self._began: float | None = None  # when the batch went to the engine that is there now
        self._closing = False
        self._hold: _Hold | None = None
        self._wake, self._settled = asyncio.Event(), asyncio.Event()
        self._swapping = asyncio.Lock()
        self._dispatcher: asyncio.Task[None] | None = None
        self._swaps: set[asyncio.Task[int]] = set()

    @property
    def weight_version(self) -> int:
        """How often the weights have been swapped."""
        return self._version

    @property
    def alive(self) -> bool:
        """Whether requests are worked on; false also when one batch takes longer than ``stall_s``: then only a restart
        helps, for a thread that hangs cannot be ended."""
        if self._dispatcher is None or self._dispatcher.done():
            return False
        return self._began is None or time.monotonic() - self._began < self._stall_s

    @property
    def ready(self) -> bool:
        """Whether the weights in use have put the canary pair into the right order, and requests are taken."""
        return self.fault is None

    @property
    def fault(self) -> str | None:
        """Why the service is not ready, in words."""
        if self._closing:
            return "the service is closing"
        if self._worker is None or not self.alive:
            return "the service does not run"
        return self._worker.fault

    async def start(self) -> None:
        """Builds the scorer and asks the canary. Raises what the builder raises; a wrong canary does not raise."""
        worker = Worker(self._open_scorer, self._folder, self._canary)
        try:
            await asyncio.wrap_future(worker.open())
            self._check_not_closing()
        except BaseException:
            worker.close()
            raise
        self._worker = worker
        self._dispatcher = asyncio.create_task(self._dispatch(), name="dispatcher")
        self._dispatcher.add_done_callback(self._dispatcher_ended)

    async def close(self, drain_s: float) -> None:
        """Takes no more work, answers what is queued for up to ``drain_s`` seconds, then closes the scorer.

        What is not answered by then ends with :class:`ServiceClosed`.
        """
        self._closing = True
        self._wake.set()
        if self._open:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._settled.wait()
        self._fail_all("the service was closed before the request was answered")
        tasks: list[asyncio.Task[Any]] = [*self._swaps, *([self._dispatcher] if self._dispatcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            await ended(worker)

    def submit(self, items: Sequence[ServeItem], *, deadline_s: float | None = None) -> Ticket:
        """Queues a request, to be answered within ``deadline_s`` seconds (None: whenever).

        Raises at once: :class:`ServiceClosed`, :class:`Overloaded`, :class:`TooManyItems` when there could never be
        room for it, and :class:`DeadlinePassed` when no time is left.
        """
        self._check_open()
        if len(items) > self._queue_items:
            raise TooManyItems(f"{len(items)} items do not fit a queue of {self._queue_items}: send them in parts")
        if deadline_s is not None and deadline_s <= 0:
            self._meter.count("deadline_passed_total")
            raise DeadlinePassed("no time was left when the request came")
        self._check_room(len(items))
        lane = self._lanes[-1]
        job = Job(len(items))
        if items:
            self._enter(job, lane, items, deadline_s)
        return Ticket(job, lane, self._version)

    async def score(self, items: Sequence[ServeItem], *, deadline_s: float | None = None) -> list[ItemScore]:
        """The scores of all items, in order; as :meth:`submit`. Cancelling it frees what is queued."""
        with self.submit(items, deadline_s=deadline_s) as ticket:
            return [score async for score in ticket]

    async def check(self) -> str | None:
        """Asks the canary now, between two batches; the new :attr:`fault`."""
        if self._worker is not None:
            with contextlib.suppress(ServiceClosed):  # while two scorers are exchanged there is none to ask
                await asyncio.wrap_future(self._worker.check())
        return self.fault

    async def swap(self, folder: Path) -> int:
        """Serves the weights in ``folder`` from now on; returns their version.

        Requests taken before the switch are scored by the old weights, those after it by the new ones: none is scored
        by both, and none is dropped. Raises :class:`SwapFailed`, and the old weights go on serving, when the new ones
        cannot be opened or fail their canary. A swap that nobody waits for any more is finished all the same.
        """
        task = asyncio.create_task(self._swap(folder))
        self._swaps.add(task)
        task.add_done_callback(self._swaps.discard)
        return await asyncio.shield(task)

    def metrics(self) -> Mapping[str, float]:
        """Counts since the start (``*_total``: :data:`rewards.serve.meter.TOTALS`), and what there is now."""
        values = dict(self._meter.values())
        for lane in self._lanes:
            values["deduplicated_total"] += lane.queue.deduplicated
        if self._worker is not None:
            values["recoveries_total"] += self._worker.recoveries
            values["engine_failures_total"] += self._worker.engine_failures
        values["queue_items"] = float(self._queued_items())
        values["queue_bytes"] = float(self._queued_bytes())
        values["requests_open"] = float(len(self._open))
        values["weight_version"] = float(self._version)
        values["ready"] = float(self.ready)
        return values

    def _queued_items(self) -> int:
        return sum(lane.queue.items for lane in self._lanes)

    def _queued_bytes(self) -> int:
        return sum(lane.queue.size for lane in self._lanes)

    def _check_room(self, items: int) -> None:
        queued, size = self._queued_items(), self._queued_bytes()
        surplus = queued + items - self._queue_items
        if surplus <= 0 and size < self._queue_bytes:
            return
        self._meter.count("overloaded_total")
        # What must leave before this request fits, at the speed of the last batches.
        ahead = max(size * surplus // max(queued, 1), size - self._queue_bytes)
        raise Overloaded(max(0.1, self._meter.seconds_for(min(max(ahead, 0), size))))

    def _enter(self, job: Job, lane: Lane, items: Sequence[ServeItem], deadline_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        came = loop.time()
        timer: asyncio.TimerHandle | None = None

        def end() -> None:
            if timer is not None:
                timer.cancel()
            lane.queue.leave(job)
            self._open.discard(job)
            if not self._open:
                self._settled.set()
            if job.error is None:
                self._meter.answered(loop.time() - came)
            else:
                expired = isinstance(job.error, DeadlinePassed)
                self._meter.count("deadline_passed_total" if expired else "cancelled_total")

        if deadline_s is not None:
            late = DeadlinePassed(f"the scores were not ready in {deadline_s:g} s")
            timer = loop.call_later(deadline_s, job.fail, late)
        job.on_end = end
        self._meter.count("requests_total")
        if not lane.queue:
            self._since = came
        self._open.add(job)
        lane.queue.add(job, items)
        self._wake.set()

    async def _dispatch(self) -> None:
        while True:
            queue = self._lanes[0].queue
            if queue:
                await self._gather(queue)
                await self._compute(queue)
            elif self._hold is not None:
                self._hold.drained.set()
                await self._hold.resumed.wait()
                self._meter.count("deduplicated_total", self._lanes.popleft().queue.deduplicated)
                self._hold = None
            elif not await self._woken(RECHECK_SECONDS) and not self.ready:
                await self.check()

    async def _gather(self, queue: BatchQueue) -> None:
        """Waits until a batch is full, or its first item has waited long enough."""
        until = self._since + self._max_wait_s
        limit = self._meter.bytes_for(self._batch_tokens)
        while queue.size < limit and not self._closing:
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or not await self._woken(left):
                return

    async def _woken(self, seconds: float) -> bool:
        self._wake.clear()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the event, and close() hangs.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _compute(self, queue: BatchQueue) -> None:
        batch = queue.take(self._meter.bytes_for(self._batch_tokens))
        if not batch:
            return
        self._began = time.monotonic()
        scores = await asyncio.wrap_future(self._serving().score([c.item for c in batch]))
        self._meter.batch(scores, sum(c.size for c in batch), time.monotonic() - self._began)
        self._began = None
        for computation, score in zip(batch, scores, strict=True):
            queue.answer(computation, score)

    def _dispatcher_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail_all(f"the service has failed: {task.exception()!r}")

    def _fail_all(self, reason: str) -> None:
        for job in list(self._open):
            job.fail(ServiceClosed(reason))

    def _check_open(self) -> None:
        self._check_not_closing()
        if not self.alive:
            raise ServiceClosed("the service does not run")

    def _check_not_closing(self) -> None:
        if self._closing:
            raise ServiceClosed("the service is closing")

    def _serving(self) -> Worker:
        if self._worker is None:
            raise ServiceClosed("the service does not run")
        return self._worker

    async def _swap(self, folder: Path) -> int:
        async with self._swapping:
            self._check_open()
            if self._exclusive:
                async with self._held():
                    await self._exchange(folder)
                return self._version
            fresh = await opened(self._open_scorer, folder, self._canary)
            try:
                async with self._held():
                    old = self._install(fresh)
            except BaseException:
                fresh.close()
                raise
            await self._retire(old)
            return self._version

    async def _exchange(self, folder: Path) -> None:
        """Closes the old scorer, then opens the new one, or the old one again."""
        old = self._serving()
        await self._retire(old)
        try:
            self._install(await opened(self._open_scorer, folder, self._canary))
        except SwapFailed:
            self._worker = Worker(self._open_scorer, old.folder, self._canary)
            # Where even that fails, the worker goes on trying: the service lives and is not ready.
            with contextlib.suppress(Exception):
                await asyncio.wrap_future(self._worker.open())
            raise

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Inside, the requests taken before are answered, and those taken since wait for the weights to come."""
        self._hold = hold = _Hold()
        lane = Lane(version=None)
        self._lanes.append(lane)
        self._wake.set()
        try:
            await hold.drained.wait()
            yield
        finally:
            lane.version = self._version
            hold.resumed.set()

    def _install(self, worker: Worker) -> Worker:
        """From now on this one serves; the one that did until now."""
        old = self._serving()
        self._worker = worker
        self._version += 1
        self._meter.count("swaps_total")
        return old

    async def _retire(self, worker: Worker) -> None:
        await ended(worker)
        self._meter.count("recoveries_total", worker.recoveries)
        self._meter.count("engine_failures_total", worker.engine_failures)
