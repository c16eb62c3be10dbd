"""A scoring server, from its settings to its end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, final

import uvicorn
from fastapi import FastAPI

from rewards.errors import RewardError
from rewards.serve.app import create_app
from rewards.serve.lifespan import WithLifespan
from rewards.serve.process import ProcessScorer
from rewards.serve.references import load_references
from rewards.serve.service import ScoringService
from rewards.serve.types import ItemScorer, Limits

_LOG = logging.getLogger("rewards.serve")

_KEEP_ALIVE_S: Final = 75
"""Longer than clients keep idle connections: the one that closes first should be the client."""

_GRACE_S: Final = 5
"""How many seconds answers may still be on their way after the queue has been drained."""

_TICK_S: Final = 0.1

_BACKLOG: Final = 2048

_print = partial(print, flush=True)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What to serve, and how.

    ``model`` is a folder or a name that :func:`rewards.polar.model.resolve_polar` knows, ``name`` what requests and
    answers call it (None: ``model`` itself). ``backend``, ``dtype`` and ``max_context`` (tokens) are those of
    :func:`rewards.polar.scorer.open_scorer`. ``port`` 0 takes a free one. ``token_env`` names the environment
    variable that holds the bearer token; None serves without one. ``batch_tokens`` and ``max_wait_s``: how much a
    batch holds, and how long its first item waits for company. ``queue_items`` is how many items may wait.
    ``kv_cache_gib`` is the memory for what requests share, with vLLM on the CPU. ``drain_s``: how long what is queued
    may take after SIGTERM. ``references``: a file of JSON lines with ``prompt`` and ``reference``, for clients that
    send none.
    """

    model: str
    name: str | None = None
    backend: Literal["vllm", "transformers"] = "vllm"
    dtype: str = "bfloat16"
    max_context: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_env: str | None = None
    limits: Limits = field(default_factory=Limits)
    batch_tokens: int = 8192
    max_wait_s: float = 0.005
    queue_items: int = 20_000
    kv_cache_gib: float = 1.0
    drain_s: float = 30.0
    references: Path | None = None


def serve(settings: ServeSettings, announce: Callable[[str], None] = _print) -> int:
    """Serves until SIGTERM or Ctrl-C; what was taken by then is answered first, unless Ctrl-C comes again. Returns 0.

    ``announce`` is given one line with the address once the server answers, and one when the model is ready; before
    that, ``/health`` is well, ``/ready`` is not, and requests are told to come back.

    Raises :class:`RewardError` for a token or references that cannot be had and an address that cannot be listened on,
    and what resolving and opening the model raises.
    """
    app, service = _build(settings)
    with listening(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        announce(f"serving {service.name} on http://{f'[{host}]' if ':' in host else host}:{port} (manual: /docs)")
        Server(app, service, settings.drain_s, announce).run_on(listener)
    return 0


@final
@dataclass(frozen=True, slots=True)
class Replica:
    """The same server as one of several behind an address, for hosts of ASGI apps such as :mod:`cluster.serve`.

    Picklable; called where the app shall run. The token must be in the environment there. Weights of one replica are
    not swapped: the others would go on with the old ones.
    """

    settings: ServeSettings

    def __call__(self) -> WithLifespan:
        """The app, which loads its model at startup and drains its queue at shutdown."""
        app, service = _build(self.settings, swappable=False)
        return WithLifespan(app, service, self.settings.drain_s)


class Server(uvicorn.Server):
    """Answers from the start, loads the model meanwhile, and drains the queue before it ends."""

    def __init__(
        self,
        app: FastAPI,
        service: ScoringService,
        drain_s: float,
        announce: Callable[[str], None],
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        super().__init__(config)
        self._failure: Exception | None = None
        self._service = service
        self._drain_s = drain_s
        self._announce = announce
        self._loading: asyncio.Task[None] | None = None

    def run_on(self, listener: socket.socket) -> None:
        """Serves until a signal or ``should_exit``; raises what opening the model has raised."""
        with _ending_quietly(), asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve([listener]))
        if self._failure is not None:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._load(), name="loading")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._close(), name="closing")
        # The door stays open until the queue is drained: who comes now is told to go elsewhere. Closed at once it would
        # cut off those who are just coming in.
        while not closing.done() and not self.force_exit:
            await asyncio.wait([closing], timeout=_TICK_S)
        if self.force_exit:  # a second Ctrl-C
            await self._service.close(0.0)
        await closing
        await super().shutdown(sockets)

    async def _load(self) -> None:
        try:
            await self._service.start()
        except Exception as error:
            self._failure = error
            self.should_exit = True
            return
        if self._service.fault is None:
            self._announce(f"{self._service.name} is ready")
        else:
            _LOG.error("%s answers, but is not ready: %s", self._service.name, self._service.fault)

    async def _close(self) -> None:
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
        await self._service.close(self._drain_s)


def _build(settings: ServeSettings, *, swappable: bool = True) -> tuple[FastAPI, ScoringService]:
    from rewards.polar.model import resolve_polar

    token = read_token(settings.token_env)
    references = load_references(settings.references) if settings.references else {}
    service = ScoringService(
        _opener(settings),
        resolve_polar(settings.model),
        name=settings.name or settings.model,
        batch_tokens=settings.batch_tokens,
        max_wait_s=settings.max_wait_s,
        queue_items=settings.queue_items,
    )
    return create_app(service, limits=settings.limits, token=token, references=references, swappable=swappable), service


def _opener(settings: ServeSettings) -> Callable[[Path], ItemScorer]:
    from rewards.polar.scorer import open_scorer

    options: dict[str, Any] = {}
    if settings.backend == "vllm":
        # Candidates of one prompt come in separate requests: what they share stays computed between batches.
        options = {"keep_prefixes": True, "kv_cache_gib": settings.kv_cache_gib}
    opened = partial(
        open_scorer, backend=settings.backend, dtype=settings.dtype, max_context=settings.max_context, **options
    )
    # In a process of its own: when the engine is killed or hangs, the server lives and starts another.
    return partial(ProcessScorer, opened)


def read_token(variable: str | None) -> str | None:
    """The bearer token in the environment variable of that name; :class:`RewardError` where it holds none."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(f"set the environment variable {variable} to the token that requests must hold")
    return token


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections; :class:`RewardError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RewardError(f"cannot listen on {host}:{port}: {reason}; choose another host or port") from error
    with listener:
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _ending_quietly() -> Iterator[None]:
    """uvicorn sends itself the signal that ended it once more when it is done: a server that has drained ends well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
