"""What stands around the app: request ids and counts, the bearer token, and bodies bounded while they arrive.

Plain ASGI, without Starlette's BaseHTTPMiddleware: that one buffers what it passes on, and hides from a handler that
its client has gone.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import string
import time
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewards.serve.exposition import Meters
from rewards.serve.refusals import Refusal, error_response

REQUEST_ID: Final = "X-Request-ID"
OPEN_PATHS: Final = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""No token is asked for here: probes cannot send one, and the documentation holds no data."""

_LOG = logging.getLogger("rewards.serve")
_ID_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "-_.:")
_MAX_ID: Final = 128


class Observed:
    """The outermost layer: gives each request its id, counts it, and answers where the app has raised.

    A client's own ``X-Request-ID`` is kept where it is a plain word of at most 128 characters.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _LOG.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            scope["state"]["error_code"] = "internal"
            if status:
                raise  # half an answer is out: only a broken connection can say that it is not whole
            message = f"the server failed on this request; its log has the reason under {request_id}"
            await error_response(500, "internal", message)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            code = scope["state"].get("error_code")
            self._meters.request(route, status or 499, time.perf_counter() - began, code)


class Bearer:
    """Lets requests in that hold ``token``, compared in constant time.

    ``Authorization: Bearer TOKEN``, or ``Basic`` with the token as password, whatever the user's name: clients that can
    set no header can have it in their URL, ``http://any:TOKEN@host``.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        scope["state"]["error_code"] = "unauthorized"
        message = "this server wants a token: send Authorization: Bearer TOKEN"
        await error_response(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self._token)


class BoundedBody:
    """Counts the bytes of a body as they arrive: 413 at the first one too many, 408 where they take too long.

    What it raises passes through whoever is reading the body, up to the handler of refusals.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) > self._max_bytes:
            scope["state"]["error_code"] = "body_too_large"
            await error_response(413, "body_too_large", self._too_large())(scope, receive, send)
            return
        deadline = time.monotonic() + self._timeout_s
        seen, whole = 0, False

        async def bounded() -> Message:
            nonlocal seen, whole
            if whole:  # what comes after the body is the client's departure, however late
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                whole = True
                text = f"the body did not arrive within {self._timeout_s:g} s"
                raise Refusal(408, "slow_body", text, {"Connection": "close"}) from None
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                whole = True
                raise Refusal(413, "body_too_large", self._too_large())
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> str:
        return f"the body has more than {self._max_bytes} bytes: send the items in several requests"


def _request_id(given: str | None) -> str:
    if given and len(given) <= _MAX_ID and _ID_CHARACTERS.issuperset(given):
        return given
    return uuid.uuid4().hex
