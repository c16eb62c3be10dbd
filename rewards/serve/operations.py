"""What those who run the server need: probes, metrics, the model's name, new weights, and documentation."""

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse

from rewards.serve.desk import Desk
from rewards.serve.exposition import CONTENT_TYPE
from rewards.serve.manual import POLICY, page
from rewards.serve.native import ERRORS
from rewards.serve.refusals import CLOSING_RETRY_S, Refusal, error_response, json_response
from rewards.serve.schema import ErrorAnswer, WeightsAnswer, WeightsRequest
from rewards.serve.types import SwapFailed

_UNAVAILABLE: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": ErrorAnswer, "description": "Not now; the message says why."}
}


def router(desk: Desk, *, guarded: bool, swappable: bool) -> APIRouter:
    """The endpoints of operation; weights can be swapped only where ``guarded``, behind a token, and ``swappable``."""
    routes = APIRouter(tags=["operation"])
    service = desk.service
    was_alive = False

    @routes.get("/health", response_model=dict[str, str], responses=_UNAVAILABLE)
    async def health() -> Response:
        """Alive: also while the model is being loaded. Where this fails, only a restart helps."""
        nonlocal was_alive
        was_alive = was_alive or service.alive
        if was_alive and not service.alive:
            return error_response(503, "dead", service.fault or "the service does not run")
        return json_response({"status": "alive"})

    @routes.get("/ready", response_model=dict[str, str], responses=_UNAVAILABLE)
    async def ready() -> Response:
        """Ready: the weights in use have put a pair whose order is known into that order."""
        if service.fault is not None:
            return error_response(503, "not_ready", service.fault, {"Retry-After": str(CLOSING_RETRY_S)})
        return json_response({"status": "ready"})

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and latencies for Prometheus."""
        return Response(desk.meters.exposition(), media_type=CONTENT_TYPE)

    @routes.get("/v1/models", response_model=dict[str, object])
    async def models() -> Response:
        """The one model that is served, in the form of OpenAI's list."""
        entry = {
            "id": service.name,
            "object": "model",
            "created": 0,
            "owned_by": "polestar",
            "weight_version": service.weight_version,
        }
        return json_response({"object": "list", "data": [entry]})

    @routes.post(
        "/v1/weights",
        response_model=WeightsAnswer,
        responses={
            **{status: ERRORS[status] for status in (400, 401, 413, 415, 422, 503)},
            403: {
                "model": ErrorAnswer,
                "description": "A server without a token, or one of several.",
            },
            409: {"model": ErrorAnswer, "description": "The new weights are not served; the old ones still are."},
        },
    )
    async def weights(body: WeightsRequest) -> Response:
        """Serves other weights from now on, without dropping a request; waits until they are in use.

        Requests taken before are scored by the old weights. New ones that cannot be opened, or put the canary pair into
        the wrong order, are not served.
        """
        if not swappable:
            raise Refusal(403, "forbidden", "this is one of several replicas: deploy them again with the new weights")
        if not guarded:
            raise Refusal(403, "forbidden", "weights can be swapped only on a server that wants a token: set one")
        try:
            version = await service.swap(Path(body.folder))
        except SwapFailed as error:
            raise Refusal(409, "swap_failed", str(error)) from error
        return json_response({"model": service.name, "weight_version": version})

    return routes


def add_manual(app: FastAPI) -> None:
    """``/docs``: a page made of the OpenAPI document that loads nothing from anywhere."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})
