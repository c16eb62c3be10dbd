"""The client for coroutines."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

from rewards.endpoint import Body
from rewards.errors import BadRequest, RewardError
from rewards.failures import bearer
from rewards.polar.scorer import ItemScore
from rewards.serve.requests import (
    BATCH_BYTES,
    BATCH_ITEMS,
    MODELS,
    PROBE_S,
    READY,
    Settings,
    check_waiting,
    identity_of,
    probe_s,
    read_models,
    rollout_items,
    rollout_scores,
)
from rewards.serve.types import ServeItem
from rewards.serve.wire import Identity, Pair, PairScore, Question, item_payload
from rewards.transport import PATIENCE, AsyncTransport, Deadline, Patience
from rewards.types import Score
from rollouts.types import Rollout

T = TypeVar("T")


class AsyncRewardClient:
    """:class:`RewardClient` for coroutines; at most ``concurrency`` of its requests are under way at a time."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        token_env: str | None = None,
        patience: Patience = PATIENCE,
        batch_items: int = BATCH_ITEMS,
        batch_bytes: int = BATCH_BYTES,
        concurrency: int = 4,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if concurrency <= 0:
            raise RewardError(f"{url}: concurrency must be above 0")
        self._settings = Settings(url, model, patience, batch_items, batch_bytes)
        self._transport = AsyncTransport(patience, bearer(url, token_env), concurrency, sleep)
        self._slots = asyncio.Semaphore(concurrency)
        self._identity: Identity | None = None

    async def score_items(self, items: Sequence[ServeItem], *, deadline_s: float | None = None) -> list[ItemScore]:
        """A score or a failure for each item, in order. ``deadline_s`` bounds this call; the server is told."""
        payloads = [item_payload(item) for item in items]
        return await self._all(self._settings.scores(payloads, self._settings.deadline(deadline_s)))

    async def stream(
        self, items: Sequence[ServeItem], *, deadline_s: float | None = None
    ) -> AsyncGenerator[ItemScore, None]:
        """The same scores one by one, as soon as the server has them; after a break only the rest is asked for.

        One request after the other. Close it (``contextlib.aclosing``) when leaving before its end."""
        payloads = [item_payload(item) for item in items]
        for question in self._settings.scores(payloads, self._settings.deadline(deadline_s)):
            async with self._slots, aclosing(self._run(question)) as running:
                async for _ in running:
                    for score in question.take():
                        yield score
            for score in question.take():
                yield score

    async def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        """Each completion against its prompt's worked answer; without one it is a failure."""
        return rollout_scores(rollouts, iter(await self.score_items(rollout_items(rollouts))))

    async def compare(self, pairs: Sequence[Pair], *, deadline_s: float | None = None) -> list[PairScore]:
        """How probable it is that the first of each pair is better, in order."""
        return await self._all(self._settings.comparisons(pairs, self._settings.deadline(deadline_s)))

    async def models(self) -> list[dict[str, Any]]:
        """What the server serves, as it tells it; ``id`` is the name."""
        body = Body("GET")
        url = self._settings.root + MODELS
        async for _ in self._transport.run(url, body, self._settings.deadline(None)):
            pass
        return read_models(url, body.answer)

    async def identity(self) -> Identity:
        """Who gave the last scores; who will, where none have been asked for yet."""
        return self._identity or identity_of(self._settings.model, await self.models())

    async def ready(self) -> bool:
        """Whether the server answers, and puts its canary pair in the right order. One try."""
        return (await self._transport.status(self._settings.root + READY, PROBE_S))[0] == 200

    async def wait_until_ready(self, timeout_s: float = 300.0, every_s: float = 0.5) -> None:
        """Returns when the server is ready; :class:`Timeout` says what was in the way."""
        url, deadline = self._settings.root + READY, Deadline(timeout_s)
        while True:
            status, text = await self._transport.status(url, probe_s(deadline))
            if status == 200:
                return
            check_waiting(url, status, text, deadline)
            await asyncio.sleep(min(every_s, deadline.remaining() or 0.0))

    async def close(self) -> None:
        """Gives the connections back."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _all(self, questions: Sequence[Question[T]]) -> list[T]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._whole(question)) for question in questions]
        except BaseExceptionGroup as errors:
            # The first; it has stopped the others.
            raise errors.exceptions[0] from None
        return [row for task in tasks for row in task.result()]

    async def _whole(self, question: Question[T]) -> list[T]:
        async with self._slots, aclosing(self._run(question)) as running:
            async for _ in running:
                pass
        return question.take()

    async def _run(self, question: Question[Any]) -> AsyncGenerator[None, None]:
        try:
            async with aclosing(self._transport.run(question.url, question, question.deadline)) as running:
                async for _ in running:
                    yield
        except BadRequest as error:
            raise question.located(error) from None
        self._identity = question.identity
