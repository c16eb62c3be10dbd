"""The native endpoints: ``POST /v1/score`` and ``POST /v1/compare``."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rewards.contests import sigmoid
from rewards.polar.scorer import ItemScore
from rewards.serve.desk import Desk, Scored, checked, unless_gone
from rewards.serve.refusals import json_response, refusal_of
from rewards.serve.schema import CompareAnswer, CompareRequest, ErrorAnswer, ScoreAnswer, ScoreRequest
from rewards.serve.ticket import Ticket
from rewards.serve.types import EngineFailure
from rewards.types import ScoreFailure

NDJSON: Final = "application/x-ndjson"

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorAnswer, "description": "The body cannot be decoded."},
    401: {"model": ErrorAnswer, "description": "No token, or a wrong one."},
    413: {"model": ErrorAnswer, "description": "The body is too large, or holds too many items."},
    415: {"model": ErrorAnswer, "description": "The body is not declared as JSON."},
    422: {"model": ErrorAnswer, "description": "An item or field is wrong; the message names it."},
    503: {"model": ErrorAnswer, "description": "No room, no engine, or going down: come back after `Retry-After`."},
    504: {"model": ErrorAnswer, "description": "The deadline passed."},
}
_OTHER_MODEL: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorAnswer, "description": "Another model is served."}
}

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {NDJSON: {"schema": {"type": "string", "description": "one JSON object a line"}}}}
}


def router(desk: Desk) -> APIRouter:
    """The native endpoints."""
    routes = APIRouter(tags=["native"], responses=ERRORS | _OTHER_MODEL)

    @routes.post("/v1/score", response_model=ScoreAnswer, responses=_STREAM)
    async def score(request: Request, body: ScoreRequest) -> Response:
        """Scores items: as many answers as items, in the same order; an item that fails has an error, never a number.

        With `Accept: application/x-ndjson` the answers come one a line as they are ready, after a first line
        `{"model", "weight_version", "items"}`; a deadline that passes on the way leaves errors for the rest.
        """
        desk.check_model(body.model)
        items = [wire.item() for wire in body.items]
        ids = [wire.id for wire in body.items]
        if NDJSON in request.headers.get("accept", ""):
            return await _stream(desk, desk.admit(request, items, _item, body.deadline_s), ids, request)
        scored = await desk.score(request, items, _item, body.deadline_s)
        data = [_entry(index, ids[index], score) for index, score in enumerate(scored.scores)]
        return _answer(desk, scored, data)

    @routes.post("/v1/compare", response_model=CompareAnswer)
    async def compare(request: Request, body: CompareRequest) -> Response:
        """Compares pairs: the probability that the first is the better one is sigmoid(first - second)."""
        desk.check_model(body.model)
        items = [item for pair in body.pairs for item in pair.items()]
        scored = await desk.score(request, items, _side, body.deadline_s)
        sides = scored.scores
        data = [_pair(i, pair.id, sides[2 * i], sides[2 * i + 1]) for i, pair in enumerate(body.pairs)]
        return _answer(desk, scored, data)

    return routes


def _item(index: int) -> str:
    return f"items[{index}]"


def _side(index: int) -> str:
    return f"pairs[{index // 2}].{'second' if index % 2 else 'first'}"


def _answer(desk: Desk, scored: Scored, data: Sequence[dict[str, Any]]) -> Response:
    return json_response(
        {
            "model": desk.service.name,
            "weight_version": scored.weight_version,
            "data": data,
            "usage": {"tokens": scored.tokens, "cached_tokens": scored.cached_tokens},
        }
    )


def _entry(index: int, name: str | None, score: ItemScore) -> dict[str, Any]:
    value = checked(score)
    if isinstance(value, ScoreFailure):
        return _failed(index, name, _code(value), value.reason)
    return {
        "index": index,
        "id": name,
        "reward": value,
        "truncated": sorted(score.truncated),
        "tokens": score.tokens,
        "cached_tokens": score.cached_tokens,
    }


def _code(failure: ScoreFailure) -> str:
    return "engine_failed" if isinstance(failure, EngineFailure) else "item_failed"


def _failed(index: int, name: str | None, code: str, message: str) -> dict[str, Any]:
    return {"index": index, "id": name, "error": {"code": code, "message": message}}


def _pair(index: int, name: str | None, first: ItemScore, second: ItemScore) -> dict[str, Any]:
    values = [checked(score) for score in (first, second)]
    for side, value in zip(("first", "second"), values, strict=True):
        if isinstance(value, ScoreFailure):
            return _failed(index, name, _code(value), f"{side}: {value.reason}")
    one, other = (value for value in values if isinstance(value, float))
    return {"index": index, "id": name, "probability": sigmoid(one - other), "first": one, "second": other}


async def _stream(desk: Desk, ticket: Ticket, ids: Sequence[str | None], request: Request) -> Response:
    """Answers once the first score is there: until then, a refusal can still have its own status."""
    scores = aiter(ticket)

    async def next_score() -> ItemScore | None:
        return await anext(scores, None)

    with ExitStack() as taken:
        taken.enter_context(ticket)
        first = await unless_gone(request, next_score())
        taken.pop_all()  # from here on it is the response that gives the ticket back
    return _Stream(ticket, _lines(desk, ticket, first, scores, ids))


class _Stream(StreamingResponse):
    """Gives the request's places in the queue back however the response ends."""

    def __init__(self, ticket: Ticket, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, media_type=NDJSON)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._ticket:
            await super().__call__(scope, receive, send)


async def _lines(
    desk: Desk, ticket: Ticket, first: ItemScore | None, scores: AsyncIterator[ItemScore], ids: Sequence[str | None]
) -> AsyncIterator[bytes]:
    yield _line({"model": desk.service.name, "weight_version": ticket.weight_version, "items": len(ids)})
    done, score = 0, first
    try:
        while score is not None:
            desk.count([score])
            yield _line(_entry(done, ids[done], score))
            done += 1
            score = await anext(scores, None)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        desk.meters.answered(scored=0, failed=len(ids) - done)
        for index in range(done, len(ids)):
            yield _line(_failed(index, ids[index], refusal.code, refusal.message))


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"
