"""The endpoints of inference engines, as POLAR's ``RewardModelClient`` and verl's reward loop call them.

All take pre-rendered POLAR strings and answer the raw score, never a sigmoid or a softmax of it.

- POLAR, ``server_type="sglang"``: ``POST /classify {"model", "text"}``, a bare list, ``[i]["embedding"][0]``.
- POLAR, ``"vllm"``: ``POST /pooling {"input"}``, ``["data"][i]["data"][-1][0]``.
- POLAR, ``"lmdeploy"``: the same request, and ``["data"][i]["data"]`` is the number. The two cannot be told apart, so
  this one is at ``/lmdeploy/pooling``: ``server_address="HOST:PORT/lmdeploy"``.
- verl with vLLM: ``POST /classify {"model", "input"}``, ``["data"][-1]["probs"][-1]``.
- verl with SGLang: ``POST /v1/embeddings {"model", "input"}``, ``["data"][-1]["embedding"][-1]``.

``model`` is not looked at: these clients put the path of their tokenizer there.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Discriminator, Tag

from rewards.serve.desk import Desk, Scored
from rewards.serve.dialects.common import EXAMPLE, Loose, Texts, rendered
from rewards.serve.native import ERRORS
from rewards.serve.refusals import invalid, json_response
from rewards.serve.schema import AS_INPUT, AS_TEXT

Entry = Callable[[int, float], dict[str, Any]]
"""How an engine writes one number."""


class TextRequest(Loose):
    """SGLang's ``/classify``."""

    model_config = ConfigDict(json_schema_extra={"example": {"text": [EXAMPLE]}})

    text: Texts


class InputRequest(Loose):
    """vLLM's, lmdeploy's and OpenAI's form. An activation can be asked for only to be refused."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": [EXAMPLE]}})

    input: Texts
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    encoding_format: Literal["float"] | None = None


def _tag(value: Any) -> str:
    return AS_TEXT if isinstance(value, dict) and "text" in value else AS_INPUT


ClassifyRequest = Annotated[
    Annotated[TextRequest, Tag(AS_TEXT)] | Annotated[InputRequest, Tag(AS_INPUT)], Discriminator(_tag)
]


def router(desk: Desk) -> APIRouter:
    """The endpoints of SGLang, vLLM, lmdeploy and OpenAI."""
    routes = APIRouter(tags=["engines"], responses=ERRORS)

    @routes.post("/classify", response_model=None)
    async def classify(request: Request, body: ClassifyRequest) -> Response:
        """Of SGLang with `text` (a bare list of `embedding`), of vLLM with `input` (`probs` holds the raw score)."""
        if isinstance(body, TextRequest):
            values, scored = await _score(desk, request, body.text, "text")
            return json_response(
                [
                    {"embedding": [value], "meta_info": {"prompt_tokens": score.tokens}}
                    for value, score in zip(values, scored.scores, strict=True)
                ]
            )
        return await _list(desk, request, body, "classify", _classified)

    @routes.post("/pooling", response_model=None)
    async def pooling(request: Request, body: InputRequest) -> Response:
        """Of vLLM: the score of the last token, and of no other."""
        return await _list(desk, request, body, "pool", _pooled)

    @routes.post("/lmdeploy/pooling", response_model=None)
    async def lmdeploy_pooling(request: Request, body: InputRequest) -> Response:
        """Of lmdeploy: the score is a bare number."""
        return await _list(desk, request, body, "pool", _bare)

    @routes.post("/v1/embeddings", response_model=None)
    async def embeddings(request: Request, body: InputRequest) -> Response:
        """Of OpenAI and SGLang: an embedding of one number, the score."""
        return await _list(desk, request, body, "embd", _embedded)

    return routes


def _classified(index: int, value: float) -> dict[str, Any]:
    return {"index": index, "label": None, "probs": [value], "num_classes": 1}


def _pooled(index: int, value: float) -> dict[str, Any]:
    return {"index": index, "object": "pooling", "data": [[value]]}


def _bare(index: int, value: float) -> dict[str, Any]:
    return {"index": index, "object": "pooling", "data": value}


def _embedded(index: int, value: float) -> dict[str, Any]:
    return {"index": index, "object": "embedding", "embedding": [value]}


async def _list(desk: Desk, request: Request, body: InputRequest, kind: str, entry: Entry) -> Response:
    for name in ("use_activation", "activation", "softmax"):
        if getattr(body, name):
            raise invalid(name, "rewards are raw numbers here, squashed ones are not served: leave it out")
    values, scored = await _score(desk, request, body.input, "input")
    return json_response(
        {
            "id": f"{kind}-{request.state.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": desk.service.name,
            "data": [entry(index, value) for index, value in enumerate(values)],
            "usage": usage(scored),
        }
    )


async def _score(desk: Desk, request: Request, given: str | Sequence[str], field: str) -> tuple[list[float], Scored]:
    texts = [given] if isinstance(given, str) else given
    items = [rendered(text, f"{field}[{index}]") for index, text in enumerate(texts)]
    return await desk.numbers(request, items, lambda index: f"{field}[{index}]")


def usage(scored: Scored) -> Mapping[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": scored.tokens,
        "total_tokens": scored.tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": scored.cached_tokens},
    }
