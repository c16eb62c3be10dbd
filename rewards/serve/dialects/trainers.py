"""The endpoints that trainers ask: OpenRLHF, slime (and miles), OAT.

They send a prompt and a response. The reference is ``labels`` (OpenRLHF), ``label`` (slime), ``batch_reference`` (an
addition to OAT's request), or else what the server was started with for that prompt; the response itself may also be a
pre-rendered POLAR string. With none of these the request is refused.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgpack
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, ValidationError

from rewards.contests import sigmoid
from rewards.polar.encoding import SEPARATOR
from rewards.serve.desk import Desk
from rewards.serve.dialects.common import Loose, References, judged
from rewards.serve.native import ERRORS
from rewards.serve.refusals import Refusal, describe, invalid, json_response
from rewards.serve.schema import WireTurns, turns
from rewards.serve.types import Rendered, ServeItem

MSGPACK: Final = "application/msgpack"


class OpenRLHFRequest(Loose):
    """``openrlhf.utils.agent``: ``query`` is prompt and response in one text."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"query": ["2+2?four"], "prompts": ["2+2?"], "labels": ["4"]}}
    )

    query: list[str]
    prompts: list[str] | None = None
    labels: list[WireTurns | None] | None = None


class SlimeRequest(Loose):
    """``slime.rollout.rm_hub.remote_rm``."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "2+2?", "response": "four", "label": "4"}})

    prompt: WireTurns
    response: str
    label: WireTurns | None = None


class OATRequest(Loose):
    """``oat.oracles.remote``: either responses to score or pairs of candidates to compare, the other list empty."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"batch_prompt": ["2+2?"], "batch_response": ["four"], "batch_reference": ["4"]}}
    )

    batch_prompt: list[str]
    batch_response: list[str] = Field(default_factory=list)
    batch_candidates: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    batch_reference: list[str] = Field(default_factory=list)


_SCHEMA: Final = {"schema": OATRequest.model_json_schema()}


def router(desk: Desk, references: References) -> APIRouter:
    """The endpoints of the three trainers."""
    routes = APIRouter(tags=["trainers"], responses=ERRORS)

    @routes.post("/get_reward", response_model=None)
    async def get_reward(request: Request, body: OpenRLHFRequest) -> Response:
        """Of OpenRLHF (`--reward.remote_url`): a label is the reference. Give prompts without a chat template: POLAR
        has none, and reads prompt and response as they are."""
        items = _openrlhf_items(body, references)
        values, _ = await desk.numbers(request, items, lambda index: f"query[{index}]")
        return json_response({"rewards": values, "scores": values, "extra_logs": {"polar_reward": values}})

    @routes.post("/remote_rm", response_model=None)
    async def remote_rm(request: Request, body: SlimeRequest) -> Response:
        """Of slime (`--rm-type remote_rm --rm-url`): the label is the reference, the answer a bare number."""
        label = None if body.label is None else turns(body.label)
        item = judged(turns(body.prompt), body.response, label, references, "label", "give the reference as label")
        values, _ = await desk.numbers(request, [item], lambda _: "response")
        return json_response(values[0])

    @routes.post(
        "/get_feedback",
        response_model=None,
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": _SCHEMA, MSGPACK: _SCHEMA}},
        },
    )
    async def get_feedback(request: Request) -> Response:
        """Of OAT (`--remote-rm-url`): MessagePack in and out, or JSON. `batch_score` for responses,
        `batch_first_win_prob` for candidates."""
        as_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
        feedback = await _oat_feedback(desk, request, _oat_request(await request.body(), as_json), references)
        return json_response(feedback) if as_json else Response(msgpack.packb(feedback), media_type=MSGPACK)

    return routes


def _openrlhf_items(body: OpenRLHFRequest, references: References) -> list[ServeItem]:
    nothing = [None] * len(body.query)
    prompts: Sequence[str | None] = body.prompts or nothing
    labels = body.labels or nothing
    for name, values in (("prompts", prompts), ("labels", labels)):
        if len(values) != len(body.query):
            raise invalid(name, f"{len(values)} for {len(body.query)} queries")
    return [
        _openrlhf_item(index, query, prompt, None if label is None else turns(label), references)
        for index, (query, prompt, label) in enumerate(zip(body.query, prompts, labels, strict=True))
    ]


def _openrlhf_item(index: int, query: str, prompt: str | None, label: Any, references: References) -> ServeItem:
    where = f"query[{index}]"
    known = label or (references.get(prompt) if prompt is not None else None)
    if not known and SEPARATOR in query:
        return Rendered(query)
    if prompt is None:
        raise invalid(where, "without prompts, a query must be a string rendered by POLAR's client")
    if not query.startswith(prompt):
        raise invalid(where, f"does not begin with prompts[{index}], so that the response in it cannot be told")
    return judged(prompt, query[len(prompt) :], known, references, where, "give references as labels")


def _oat_request(body: bytes, as_json: bool) -> OATRequest:
    try:
        content = json.loads(body) if as_json else msgpack.unpackb(body, raw=False)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        form = "JSON" if as_json else "MessagePack"
        what = " ".join(str(error).split()) or type(error).__name__
        raise Refusal(422, "invalid", f"body: not {form}: {what[:200]}") from None
    try:
        return OATRequest.model_validate(content)
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False, include_input=False)]
        raise Refusal(422, "invalid", describe(found)) from None


async def _oat_feedback(
    desk: Desk, request: Request, body: OATRequest, references: References
) -> dict[str, list[float]]:
    name = "batch_candidates" if body.batch_candidates else "batch_response"
    rows = body.batch_candidates or [[response] for response in body.batch_response]
    count = len(body.batch_prompt)
    for field, given in ((name, len(rows)), ("batch_reference", len(body.batch_reference))):
        if given != count and (given or field == name):
            raise invalid(field, f"{given} for {count} prompts")
    width = len(rows[0]) if rows else 1
    known: Sequence[str | None] = body.batch_reference or [None] * count
    items = [
        judged(prompt, output, reference, references, f"batch_prompt[{index}]", "give references as batch_reference")
        for index, (prompt, row, reference) in enumerate(zip(body.batch_prompt, rows, known, strict=True))
        for output in row
    ]

    def naming(index: int) -> str:
        return f"{name}[{index // width}]" + (f"[{index % width}]" if width > 1 else "")

    values, _ = await desk.numbers(request, items, naming)
    if width == 1:
        return {"batch_score": values, "batch_first_win_prob": []}
    wins = [sigmoid(first - second) for first, second in zip(values[::2], values[1::2], strict=True)]
    return {"batch_score": [], "batch_first_win_prob": wins}
