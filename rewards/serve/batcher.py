"""The queue: requests are cut into groups that share a prefix, and batches take one group of each request in turn.

Plain data without locks: everything here is touched by the event loop's thread only.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, final

from rewards.polar.encoding import SEPARATOR
from rewards.polar.scorer import ItemScore
from rewards.polar.types import Turns
from rewards.serve.types import Rendered, ServeItem

GROUP_ITEMS: Final = 64
"""A group with more items is cut: one request may not hold the engine for as long as it likes."""


@final
class Job:
    """One request on its way. It ends when every item is answered, or with :meth:`fail`; then ``on_end`` is called."""

    def __init__(self, size: int) -> None:
        self.results: list[ItemScore | None] = [None] * size
        self.error: Exception | None = None
        self.ended = size == 0
        self.on_end: Callable[[], None] = lambda: None
        self.computations: list[Computation] = []
        self.groups: deque[Group] = deque()
        self._missing = size
        self._progress = asyncio.Event()

    def answer(self, index: int, score: ItemScore) -> None:
        """Takes the score of one item."""
        if self.ended:
            return
        self.results[index] = score
        self._missing -= 1
        self._progress.set()
        if self._missing == 0:
            self._end()

    def fail(self, error: Exception) -> None:
        """Ends the request with an error; does nothing when it has ended."""
        if self.ended:
            return
        self.error = error
        self._progress.set()
        self._end()

    async def scores(self) -> AsyncIterator[ItemScore]:
        """The scores in order, as they become ready; raises what the request has failed with."""
        for index in range(len(self.results)):
            while (result := self.results[index]) is None:
                if self.error is not None:
                    raise self.error
                self._progress.clear()
                await self._progress.wait()
            yield result

    def _end(self) -> None:
        self.ended = True
        self.on_end()


@dataclass(eq=False, slots=True)
class Computation:
    """One item to be scored once, for everybody who waits for it.

    ``size`` is that of the whole item in bytes, ``own`` that of what it does not share with its group.
    """

    item: ServeItem
    key: Hashable
    size: int
    own: int
    waiters: list[tuple[Job, int]] = field(default_factory=list)
    started: bool = False


@dataclass(eq=False, slots=True)
class Group:
    """Items of one request with the same prompt and reference; ``prefix`` is the size of what they share, in bytes."""

    key: Hashable
    prefix: int
    job: Job
    computations: list[Computation] = field(default_factory=list)

    def waiting(self) -> list[Computation]:
        """What is left of it to do."""
        return [c for c in self.computations if not c.started and c.waiters]


@final
class BatchQueue:
    """Requests that wait, oldest first, and what of them is being computed."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self._open: dict[Hashable, Computation] = {}  # asked for and not answered: queued, or being computed
        self._groups: dict[Hashable, dict[int, Group]] = {}  # queued groups of every request, by what they share
        self.items = 0  # queued; what is being computed does not count
        self.size = 0  # of the same, in bytes
        self.deduplicated = 0

    def __bool__(self) -> bool:
        return self.items > 0

    def add(self, job: Job, items: Sequence[ServeItem]) -> None:
        """Queues a request of these items."""
        groups: dict[Hashable, Group] = {}
        for index, item in enumerate(items):
            key, prefix, own = _measure(item)
            group = groups.get(key)
            if group is None or len(group.computations) >= GROUP_ITEMS:
                group = groups[key] = Group(key, prefix, job)
                job.groups.append(group)
            computation = self._computation(item, (key, _own_text(item)), prefix + own, own)
            if not (computation.waiters and computation.waiters[-1][0] is job):
                job.computations.append(computation)
                # It stands in the groups of every request that wants it: the one whose turn is first has it computed.
                if not computation.started:
                    group.computations.append(computation)
            computation.waiters.append((job, index))
        for group in job.groups:
            self._groups.setdefault(group.key, {})[id(group)] = group
        self._jobs[job] = None

    def take(self, limit: int) -> list[Computation]:
        """The next batch, in which items that share a prefix are neighbours.

        One group of each request in turn, and with it the queued groups of others that share its prefix, until
        ``limit`` bytes are reached; the group that crosses the limit is in, so that a batch is never empty while
        something waits.
        """
        batch: list[Computation] = []
        size = 0
        while self._jobs and size < limit:
            job, _ = self._jobs.popitem(last=False)
            group = self._next(job)
            if group is None:
                continue
            self._jobs[job] = None
            size += group.prefix + self._start(group, batch)
            for other in list(self._groups.get(group.key, {}).values()):
                if size < limit and other.job is not job:
                    size += self._start(other, batch)
        return batch

    def answer(self, computation: Computation, score: ItemScore) -> None:
        """Tells everybody who waits for it."""
        del self._open[computation.key]
        waiters, computation.waiters = computation.waiters, []
        for position, (job, index) in enumerate(waiters):
            # Nothing was computed for the others.
            job.answer(index, score if position == 0 else replace(score, cached_tokens=score.tokens))

    def leave(self, job: Job) -> None:
        """Gives the places of a request's items back, where nobody else wants them."""
        for computation in job.computations:
            had = bool(computation.waiters)
            computation.waiters = [waiter for waiter in computation.waiters if waiter[0] is not job]
            if had and not computation.waiters and not computation.started:
                self._forget(computation)
                del self._open[computation.key]
        for group in job.groups:
            self._drop(group)
        job.groups.clear()
        job.computations.clear()
        self._jobs.pop(job, None)

    def _computation(self, item: ServeItem, key: Hashable, size: int, own: int) -> Computation:
        known = self._open.get(key)
        if known is not None:
            self.deduplicated += 1
            return known
        self._open[key] = computation = Computation(item, key, size, own)
        self.items += 1
        self.size += size
        return computation

    def _next(self, job: Job) -> Group | None:
        while job.groups:
            group = job.groups.popleft()
            self._drop(group)
            if group.waiting():
                return group
        return None

    def _drop(self, group: Group) -> None:
        queued = self._groups.get(group.key)
        if queued is not None and queued.pop(id(group), None) is not None and not queued:
            del self._groups[group.key]

    def _start(self, group: Group, batch: list[Computation]) -> int:
        """Moves what is left of the group to the batch; the bytes that this adds, without what the group shares."""
        total = 0
        for computation in group.waiting():
            computation.started = True
            self._forget(computation)
            total += computation.own
            batch.append(computation)
        return total

    def _forget(self, computation: Computation) -> None:
        self.items -= 1
        self.size -= computation.size


def _measure(item: ServeItem) -> tuple[Hashable, int, int]:
    """What a group is known by, and the sizes in bytes of what the group shares and of the item's own text."""
    if isinstance(item, Rendered):
        head, _, rest = item.text.partition(SEPARATOR)
        return head, _bytes(head), _bytes(rest)
    prompt, reference = text_of(item.prompt), text_of(item.reference)
    return (prompt, reference, item.wrapper), 2 * _bytes(prompt) + _bytes(reference), _bytes(text_of(item.output))


def _own_text(item: ServeItem) -> str:
    return item.text if isinstance(item, Rendered) else text_of(item.output)


def text_of(turns: Turns) -> str:
    """The text that POLAR sees: contents joined by line breaks."""
    return turns if isinstance(turns, str) else "\n".join(turn.content for turn in turns)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
