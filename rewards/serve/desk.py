"""The counter between HTTP and the service: what is let in, until when, and what comes back of it."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request

from rewards.polar.scorer import ItemScore
from rewards.polar.types import Turns
from rewards.serve.exposition import Meters
from rewards.serve.refusals import CLOSING_RETRY_S, ClientGone, Refusal, invalid
from rewards.serve.service import ScoringService
from rewards.serve.ticket import Ticket
from rewards.serve.types import EngineFailure, Limits, Rendered, ServeItem
from rewards.types import ScoreFailure

ResultT = TypeVar("ResultT")

DEADLINE_HEADER: Final = "X-Deadline-S"

Naming = Callable[[int], str]
"""What errors call the item at an index: ``items[3]``, ``text[3]``."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The answers to one request, in its order, all by the weights of one version."""

    scores: list[ItemScore]
    weight_version: int

    @property
    def tokens(self) -> int:
        return sum(score.tokens for score in self.scores)

    @property
    def cached_tokens(self) -> int:
        return sum(score.cached_tokens for score in self.scores)


class Desk:
    """Checks a request against the limits, hands it to the service, and gives up when the client has gone."""

    def __init__(self, service: ScoringService, limits: Limits, meters: Meters) -> None:
        self.service = service
        self.limits = limits
        self.meters = meters

    def check_model(self, model: str | None) -> None:
        """404 for another model than the one that is served: its scores would be meaningless."""
        if model is not None and model != self.service.name:
            raise Refusal(404, "unknown_model", f"model: {model[:200]!r} is not served here, {self.service.name!r} is")

    def admit(
        self, request: Request, items: Sequence[ServeItem], naming: Naming, deadline_s: float | None = None
    ) -> Ticket:
        """Queues the items; raises :class:`Refusal` and what the service raises.

        The earlier of ``deadline_s`` and the header's deadline counts, and the limit where neither is given.
        """
        limits = self.limits
        if len(items) > limits.max_items:
            raise Refusal(
                413, "too_many_items", f"{len(items)} items in one request, {limits.max_items} are allowed: send parts"
            )
        for index, item in enumerate(items):
            size = _characters(item)
            if size > limits.max_item_chars:
                what = f"has {size} characters, {limits.max_item_chars} are allowed"
                raise invalid(naming(index), what, "item_too_long")
        ticket = self.service.submit(items, deadline_s=self._deadline(request, deadline_s))
        self.meters.taken(request.scope["route"].path, len(items))
        return ticket

    async def score(
        self, request: Request, items: Sequence[ServeItem], naming: Naming, deadline_s: float | None = None
    ) -> Scored:
        """An answer to each item, in order; raises as :meth:`admit` does, and :class:`ClientGone`."""
        with self.admit(request, items, naming, deadline_s) as ticket:
            scores = await unless_gone(request, _all_of(ticket))
            self.count(scores)
            return Scored(scores, ticket.weight_version)

    async def numbers(self, request: Request, items: Sequence[ServeItem], naming: Naming) -> tuple[list[float], Scored]:
        """A number for each item, in order, for answers that cannot hold a failure.

        One that fails refuses them all: with 422 where the item is to blame, so that the client gives up, and with 503
        where the engine is, so that it comes back.
        """
        scored = await self.score(request, items, naming)
        values: list[float] = []
        for index, score in enumerate(scored.scores):
            value = checked(score)
            if isinstance(value, EngineFailure):
                message = f"{naming(index)}: {value.reason}"
                raise Refusal(503, "engine_failed", message, {"Retry-After": str(CLOSING_RETRY_S)})
            if isinstance(value, ScoreFailure):
                raise invalid(naming(index), value.reason, "item_failed")
            values.append(value)
        return values, scored

    def count(self, scores: Sequence[ItemScore]) -> None:
        """Counts answers."""
        failed = sum(isinstance(checked(score), ScoreFailure) for score in scores)
        self.meters.answered(len(scores) - failed, failed)

    def _deadline(self, request: Request, asked: float | None) -> float:
        longest = self.limits.max_deadline_s
        header = request.headers.get(DEADLINE_HEADER)
        given = [asked] if asked is not None else []
        if header is not None:
            given.append(_seconds(header))
        for value in given:
            if value > longest:
                raise invalid("deadline_s", f"{value:g} s are longer than the {longest:g} s that are allowed")
        return min([longest, *given])


def checked(score: ItemScore) -> float | ScoreFailure:
    """The score, and never a number that JSON does not have."""
    value = score.score
    if isinstance(value, ScoreFailure) or math.isfinite(value):
        return value
    return ScoreFailure(f"the model gave {value}, which is no score")


async def unless_gone(request: Request, awaited: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What is awaited, or :class:`ClientGone` as soon as the client is: it is then cancelled."""

    async def gone() -> None:
        # The body has been read: what is still to come from the client is the end of the connection.
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, departure = asyncio.create_task(awaited), asyncio.create_task(gone())
    try:
        await asyncio.wait([work, departure], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        departure.cancel()
        await asyncio.gather(work, departure, return_exceptions=True)


async def _all_of(ticket: Ticket) -> list[ItemScore]:
    return [score async for score in ticket]


def _seconds(header: str) -> float:
    try:
        value = float(header)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise invalid(DEADLINE_HEADER, f"must be a number of seconds above 0, not {header[:80]!r}")
    return value


def _characters(item: ServeItem) -> int:
    if isinstance(item, Rendered):
        return len(item.text)
    return sum(map(_length, (item.prompt, item.reference, item.output)))


def _length(turns: Turns) -> int:
    return len(turns) if isinstance(turns, str) else sum(len(turn.content) for turn in turns)
