"""The near side of a hosted part: an actor with deadlines and restarts, and an object with the part's methods."""

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, final

import psutil
import ray

from cluster.caller import Caller, Label, no_method, pack
from cluster.errors import DeadlineExceeded, HostDied, HostError
from cluster.part import Home, PartServer

_EXIT_SECONDS = 5.0
_ORDER_SECONDS = 2.0  # for Ray to end a process itself: one that merely vanishes it reports on the terminal, at length
_RESERVED = frozenset({"submit", "with_deadline", "restarts", "apply", "caller"})


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that it takes to start a part, once or again. ``build`` is the pickled request that makes it."""

    name: str
    build: bytes
    options: Mapping[str, Any]
    threads: str | None
    log_file: Path | None
    start_deadline_s: float
    max_restarts: int


@dataclass(slots=True)
class _Life:
    """One process of a part, from its start to its end."""

    handle: Any
    home: Home | None = None
    methods: frozenset[str] = frozenset()
    pending: set[Any] = field(default_factory=set)
    dead: bool = False


@final
class Actor:
    """A part's process over all its lives. Safe to use from several threads."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.label = Label(blueprint.name, blueprint.log_file)
        self.restarts = 0
        self._closed = False
        self._lock = threading.RLock()
        self._life = self._start()

    @property
    def methods(self) -> frozenset[str]:
        """The names of the part's public methods."""
        return self._life.methods

    def send(self, what: str, *request: Any) -> "PendingCall":
        """Queues ``request``, in a new life where the last one has ended; ``what`` names it in messages."""
        blob = pack(what, *request)
        with self._lock:
            return self._post(self._living(), what, blob)

    def caller(self, deadline_s: float | None) -> Caller:
        """Who may be sent elsewhere, and calls this life of the part, or a new one where the last one has ended."""
        with self._lock:
            life = self._living()
            return Caller(self.label, life.handle, life.methods, deadline_s)

    def kill(self) -> None:
        """Ends the part's process and everything that it has started."""
        with self._lock:
            self._end(self._life)

    def ask_to_end(self) -> bool:
        """Refuses further calls and asks an idle part to end as a program does; whether it was idle."""
        with self._lock:
            self._closed = True
            life = self._life
            busy = life.pending and ray.wait(list(life.pending), num_returns=len(life.pending), timeout=0)[1]
            if not (life.dead or busy):
                life.handle.__ray_terminate__.remote()
            return not (life.dead or busy)

    def wait_for_end(self, timeout_s: float) -> None:
        """Gives a process on this machine that was asked to end the time to do so."""
        home = self._life.home
        if home is not None and _is_here(home):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.wait_procs([psutil.Process(home.pid)], timeout=timeout_s)

    def receive(self, life: _Life, reference: Any, what: str, deadline_s: float | None) -> Any:
        """The value of a request, or its own exception. A missed deadline ends the life."""
        try:
            answer = self.label.fetch(reference, what, deadline_s)
        except DeadlineExceeded:
            self._end(life)
            message = f"{self.label} did not answer {what} within {deadline_s:g} s and was killed{self.label.log}"
            raise DeadlineExceeded(message) from None
        except HostDied:
            self._end(life)
            raise
        life.pending.discard(reference)
        return self.label.value(answer)

    def _living(self) -> _Life:
        """The life to ask, a new one where the last one has ended."""
        if self._closed:
            raise HostError(f"{self.label} is closed")
        if self._life.dead:
            self._restart()
        return self._life

    def _post(self, life: _Life, what: str, request: bytes) -> "PendingCall":
        reference = life.handle.run.remote(request)
        life.pending.add(reference)
        return PendingCall(self, life, reference, what)

    def _start(self) -> _Life:
        blueprint = self.blueprint
        until = time.monotonic() + blueprint.start_deadline_s
        server = ray.remote(PartServer).options(**blueprint.options)
        life = _Life(server.remote(str(blueprint.log_file) if blueprint.log_file else None, blueprint.threads))
        try:
            home = self._post(life, "its start", pickle.dumps(("home",)))
            life.home = self.receive(life, home.reference, home.what, blueprint.start_deadline_s)
            built = self._post(life, "its construction", blueprint.build)
            life.methods = self.receive(life, built.reference, built.what, max(0.0, until - time.monotonic()))
            if taken := life.methods & _RESERVED:
                raise HostError(f"{self.label} has a method {min(taken)!r}, a name that hosting needs")
        except BaseException as error:  # ours, the part's own or Ctrl-C: there is no part to keep a process for
            late = isinstance(error, DeadlineExceeded) and life.dead  # and not one that its construction has met
            self._end(life)
            if not late:
                raise
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            raise DeadlineExceeded(
                f"{self.label} was not ready within {blueprint.start_deadline_s:g} s (free in the cluster: "
                f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs){self.label.log}"
            ) from None
        return life

    def _restart(self) -> None:
        limit = self.blueprint.max_restarts
        if self.restarts >= limit:
            raise HostDied(f"{self.label} is dead and has used its {limit} restarts{self.label.log}")
        self.restarts += 1
        self._life = self._start()

    def _end(self, life: _Life) -> None:
        with self._lock:
            if not life.dead:
                life.dead = True
                ray.kill(life.handle, no_restart=True)
                if life.home is not None and _is_here(life.home):
                    _kill_group(life.home)


@final
class PendingCall:
    """A call that is under way."""

    def __init__(self, actor: Actor, life: _Life, reference: Any, what: str) -> None:
        self._actor, self._life = actor, life
        self.reference, self.what = reference, what

    def done(self) -> bool:
        """Whether :meth:`result` would return or raise at once."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self, deadline_s: float | None = None) -> Any:
        """Waits up to ``deadline_s`` seconds (None: for ever) for the value, or raises what the part raised.

        The part is killed when the deadline passes.
        """
        return self._actor.receive(self._life, self.reference, self.what, deadline_s)


@final
class Hosted:
    """Stands for a part that lives in an actor: the same methods, each with a deadline in seconds.

    Beside the part's own methods it has ``submit``, ``apply``, ``with_deadline``, ``caller`` and ``restarts``.
    """

    def __init__(self, actor: Actor, deadline_s: float | None) -> None:
        self._actor = actor
        self._deadline_s = deadline_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._actor.methods:
            raise AttributeError(no_method(getattr(self.__dict__.get("_actor"), "label", "part"), name))

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.submit(name, *args, **kwargs).result(self._deadline_s)

        return call

    def __reduce__(self) -> NoReturn:
        raise TypeError("a hosted part cannot be sent to another process: send cluster.caller(part)")

    @property
    def restarts(self) -> int:
        """How often the part was started again. It comes back as built: its state is the caller's to put back."""
        return self._actor.restarts

    def submit(self, method: str, /, *args: Any, **kwargs: Any) -> PendingCall:
        """Starts ``method`` without waiting. A part starts its calls in the order they came."""
        if method not in self._actor.methods:
            getattr(self, method)
        return self._actor.send(f"{method}()", "call", method, args, kwargs)

    def with_deadline(self, deadline_s: float | None) -> "Hosted":
        """The same part under another deadline in seconds; None waits for ever."""
        return Hosted(self._actor, deadline_s)

    def caller(self) -> Caller:
        """Who calls the part from other processes, under the same deadline."""
        return self._actor.caller(self._deadline_s)

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Runs ``function(part, *args)`` where the part lives."""
        name = getattr(function, "__qualname__", repr(function))
        return self._actor.send(f"{name}()", "apply", function, args).result(self._deadline_s)


def end_all(actors: list[Actor], grace_s: float) -> None:
    """Lets idle parts end as programs do (exit handlers run) for at most ``grace_s`` seconds; kills the rest."""
    until = time.monotonic() + grace_s
    asked = [actor for actor in actors if actor.ask_to_end()]
    for actor in asked:
        actor.wait_for_end(max(0.0, until - time.monotonic()))
    for actor in actors:
        actor.kill()


def _is_here(home: Home) -> bool:
    return bool(home.node == ray.get_runtime_context().get_node_id())


def _kill_group(home: Home) -> None:
    """Kills a part's process and its children, which share its process group, and waits until it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(home.pid)
        if process.create_time() != home.started:
            return  # the number has been given to someone else
        psutil.wait_procs([process], timeout=_ORDER_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(home.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(home.pid)], timeout=_EXIT_SECONDS)
