"""An app that starts and closes its own service, for servers that know nothing but ASGI: Ray Serve, uvicorn's CLI."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

from rewards.serve.service import ScoringService

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]


@final
class WithLifespan:
    """``app`` and ``service``: built at startup, before any request; at shutdown drained for ``drain_s`` seconds.

    A service that cannot start fails the startup with the reason.
    """

    def __init__(self, app: ASGIApp, service: ScoringService, drain_s: float) -> None:
        self._app, self._service, self._drain_s = app, service, drain_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            await self._service.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error) or type(error).__name__})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._service.close(self._drain_s)
        await send({"type": "lifespan.shutdown.complete"})
