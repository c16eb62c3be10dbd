"""The re-rankers of Cohere, Jina and vLLM: ``query`` is the prompt, ``documents`` are the candidates.

A re-ranker knows no reference. It is the field ``reference`` here, an addition to their request, or what the server was
started with for the query; without either the request is refused. ``relevance_score`` is the raw reward, not a number
between 0 and 1: its order means something, a threshold does not.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Discriminator, Field, Tag

from rewards.serve.desk import Desk
from rewards.serve.dialects.common import Loose, References, judged
from rewards.serve.dialects.engines import usage
from rewards.serve.native import ERRORS
from rewards.serve.refusals import json_response
from rewards.serve.schema import AS_DOCUMENT, AS_TEXT, WireTurns, turns


class Document(Loose):
    """A document as an object; only its text is read."""

    text: str


def _tag(value: Any) -> str:
    return AS_DOCUMENT if isinstance(value, dict | Document) else AS_TEXT


WireDocument = Annotated[Annotated[str, Tag(AS_TEXT)] | Annotated[Document, Tag(AS_DOCUMENT)], Discriminator(_tag)]


class RerankRequest(Loose):
    """``top_n`` of 0 is all of them, as in vLLM."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"query": "2+2?", "reference": "4", "documents": ["four", "five"], "top_n": 1}}
    )

    query: WireTurns
    documents: list[WireDocument]
    reference: WireTurns | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True


def router(desk: Desk, references: References) -> APIRouter:
    """One handler under the three paths that clients use."""
    routes = APIRouter(tags=["rerank"], responses=ERRORS)

    async def rerank(request: Request, body: RerankRequest) -> Response:
        """Of Cohere, Jina and vLLM: documents ordered by the reward they get against the reference, best first."""
        prompt = turns(body.query)
        reference = None if body.reference is None else turns(body.reference)
        texts = [document if isinstance(document, str) else document.text for document in body.documents]
        items = [
            judged(prompt, text, reference, references, "reference", "give the reference in this field")
            for text in texts
        ]
        values, scored = await desk.numbers(request, items, lambda index: f"documents[{index}]")
        best = sorted(range(len(values)), key=lambda index: -values[index])[: body.top_n or None]
        results = [
            {"index": index, "relevance_score": values[index]}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for index in best
        ]
        return json_response(
            {
                "id": f"rerank-{request.state.request_id}",
                "model": desk.service.name,
                "results": results,
                "usage": usage(scored),
            }
        )

    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        routes.post(path, response_model=None)(rerank)
    return routes
