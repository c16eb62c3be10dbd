"""Every request that is not served is answered ``{"error": {"code", "message"}}``, with a status that says why."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from rewards.serve.schema import TAGS
from rewards.serve.types import DeadlinePassed, Overloaded, ServiceClosed, TooManyItems

CLOSING_RETRY_S = 5
"""When to come back to a server that is loading or going down: another one should answer by then."""

_SHOWN_ERRORS = 3
_CODES = {400: "invalid", 404: "not_found", 405: "method_not_allowed"}


class Refusal(HTTPException):
    """Raised anywhere below the app; ``code`` is for programs, ``message`` for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.code = code
        self.message = message


class ClientGone(Exception):
    """The client closed the connection: nobody is there to be answered."""


def invalid(where: str, what: str, code: str = "invalid") -> Refusal:
    """422 that names the field or item."""
    return Refusal(422, code, f"{where}: {what}")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; a number that JSON does not have is a bug of ours and raises."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers) if headers else None, "application/json")


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return json_response({"error": {"code": code, "message": message}}, status, headers)


def refusal_of(error: Exception) -> Refusal | None:
    """What the service's exceptions mean to a client; None for what is no refusal."""
    match error:
        case Refusal():
            return error
        case Overloaded(retry_after_s=wait):
            return Refusal(503, "overloaded", str(error), {"Retry-After": str(max(1, math.ceil(wait)))})
        case ServiceClosed():
            message = str(error) or "the server is going down"
            return Refusal(503, "unavailable", message, {"Retry-After": str(CLOSING_RETRY_S)})
        case DeadlinePassed():
            return Refusal(504, "deadline", str(error) or "the deadline passed before the scores were there")
        case TooManyItems():
            return Refusal(413, "too_many_items", str(error))
        case _:
            return None


def install(app: FastAPI) -> None:
    """Makes every error of ``app`` answer in the one form."""
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    for kind in (Overloaded, ServiceClosed, DeadlinePassed, TooManyItems):
        app.add_exception_handler(kind, _service_error)
    app.add_exception_handler(ClientGone, _client_gone)


def note_code(request: Request, code: str) -> None:
    """Leaves the code where the meters find it."""
    request.scope.setdefault("state", {})["error_code"] = code


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    code = error.code if isinstance(error, Refusal) else _CODES.get(error.status_code, "refused")
    note_code(request, code)
    return error_response(error.status_code, code, str(error.detail), error.headers)


async def _service_error(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    assert refusal is not None
    return await _http_error(request, refusal)


async def _client_gone(request: Request, _: Exception) -> Response:
    note_code(request, "client_gone")
    return Response(status_code=499)  # nginx's number for it; nobody reads it but the log


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json" and not kind.endswith("+json"):
        refusal = Refusal(415, "unsupported_media_type", "send the body as JSON, with Content-Type: application/json")
    else:
        refusal = Refusal(422, "invalid", describe(error.errors()))
    return await _http_error(request, refusal)


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """Where and what, for the first few errors: ``items[3].reference: Field required``."""
    shown = [_line(error) for error in errors[:_SHOWN_ERRORS]]
    more = len(errors) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _line(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"body: not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
    return f"{_place(error['loc'])}: {str(error['msg'])[:200]}"


def _place(location: Sequence[int | str]) -> str:
    """``("body", "items", 3, "as triple", "reference")`` is ``items[3].reference``."""
    kind, *parts = location
    place = ""
    for part in parts:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in TAGS:
            place += f".{part[:80]}"
    if kind != "body":
        return f"{kind}{place}"
    return place.lstrip(".") or "body"
