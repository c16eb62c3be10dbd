"""Any object in its own process: ``cluster.host(factory, ...)`` gives back something with the same methods.

The same program runs with Ray and without: ``connect("local")`` builds every part in this process. What differs is
stated here and nowhere else: a local part shares memory with its caller, and cannot be interrupted, so that deadlines
and restarts concern hosted parts only.
"""

import atexit
import os
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, final

from cluster.errors import DeadlineExceeded, HostDied, HostError

if TYPE_CHECKING:
    from cluster.proxy import Actor

__all__ = [
    "Cluster",
    "DeadlineExceeded",
    "HostDied",
    "HostError",
    "LocalCluster",
    "Pending",
    "RayCluster",
    "Resources",
    "connect",
]

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What a part books. CPUs are book-keeping: parts that take turns may each use every core (see ``env``)."""

    num_cpus: float = 1
    num_gpus: float = 0
    custom: Mapping[str, float] = field(default_factory=dict)


class Pending(Protocol):
    """A call that is under way."""

    def done(self) -> bool:
        """Whether :meth:`result` would return or raise at once."""
        ...

    def result(self, deadline_s: float | None = None) -> Any:
        """Waits up to ``deadline_s`` seconds (None: for ever) for the value, or raises what the part raised."""
        ...


class Cluster(Protocol):
    """Where parts live. Closing it ends them all."""

    def host(
        self,
        factory: Callable[..., PartT],
        *args: Any,
        name: str,
        resources: Resources = ...,
        deadline_s: float | None = ...,
        start_deadline_s: float = ...,
        max_restarts: int = ...,
        max_concurrency: int = ...,
        env: Mapping[str, str] = ...,
        **kwargs: Any,
    ) -> PartT:
        """Builds ``factory(*args, **kwargs)`` and returns the part, or a stand-in with the same methods.

        A call that takes longer than ``deadline_s`` seconds raises :class:`DeadlineExceeded` and ends the part; so does
        a start that takes longer than ``start_deadline_s``. A part whose process has ended is built again by the next
        call, up to ``max_restarts`` times; the call that found out raises and is never repeated, and the caller puts
        state back. ``max_concurrency`` calls run at once, each in its own thread, and others wait their turn; a local
        part runs in the threads that call it. ``env`` is the environment of the part's own process: every core is used
        unless it, or the program's environment, sets ``OMP_NUM_THREADS``.
        """
        ...

    def apply(self, part: Any, function: Callable[..., ResultT], *args: Any) -> ResultT:
        """``function(part, *args)``, run where the part lives: what it writes need not travel."""
        ...

    def submit(self, part: Any, method: str, *args: Any, **kwargs: Any) -> Pending:
        """Starts ``part.method(...)`` and returns at once where the part has its own process."""
        ...

    def with_deadline(self, part: PartT, deadline_s: float | None) -> PartT:
        """The same part with another deadline in seconds on each call."""
        ...

    def caller(self, part: PartT) -> PartT:
        """What other hosted parts call ``part`` by: it has the same methods, and may be sent to them.

        It is given to a factory or as an argument. A call has the part's deadline, is given up when it passes, and then
        raises :class:`DeadlineExceeded`; the part goes on. A caller belongs to one life of the part: when that has
        ended its calls raise :class:`HostDied`, and whoever has hosted the part, and restarts it, gives out a new one.
        """
        ...

    def restarts(self, part: Any) -> int:
        """How often the part has been built again."""
        ...

    def close(self) -> None:
        """Ends every part and whatever was started for them. May be called twice."""
        ...


def connect(
    kind: Literal["local", "ray"],
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    log_dir: Path | None = None,
    namespace: str | None = None,
    object_store_mib: int = 256,
) -> Cluster:
    """A place for parts: this process, or Ray.

    Ray is the one this job was submitted to, else the one at ``address`` (``HOST:PORT``, or ``auto`` for one running on
    this machine), else the one that ``RAY_ADDRESS`` names, else a small one that is started here with ``num_cpus`` CPUs
    (default: all) and ended by ``close``. Parts write their output to ``log_dir/<name>.log``.
    """
    if kind == "local":
        return LocalCluster()
    return RayCluster(address, num_cpus, log_dir, namespace, object_store_mib)


@final
class LocalCluster:
    """Builds parts in this process and hands out the objects themselves."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def host(
        self,
        factory: Callable[..., PartT],
        *args: Any,
        name: str,
        resources: Resources = Resources(),
        deadline_s: float | None = 600.0,
        start_deadline_s: float = 600.0,
        max_restarts: int = 0,
        max_concurrency: int = 1,
        env: Mapping[str, str] = {},
        **kwargs: Any,
    ) -> PartT:
        _check_name(name, self._names)
        _check_concurrency(name, max_concurrency)
        part = factory(*args, **kwargs)
        self._names.add(name)
        return part

    def apply(self, part: Any, function: Callable[..., ResultT], *args: Any) -> ResultT:
        return function(part, *args)

    def submit(self, part: Any, method: str, *args: Any, **kwargs: Any) -> Pending:
        try:
            return _Done(getattr(part, method)(*args, **kwargs), None)
        except Exception as error:
            return _Done(None, error)

    def with_deadline(self, part: PartT, deadline_s: float | None) -> PartT:
        return part

    def caller(self, part: PartT) -> PartT:
        return part

    def restarts(self, part: Any) -> int:
        return 0

    def close(self) -> None:
        return None


@final
class RayCluster:
    """Builds each part in a Ray actor and hands out a :class:`cluster.proxy.Hosted` for it."""

    def __init__(
        self, address: str | None, num_cpus: int | None, log_dir: Path | None, namespace: str | None, store_mib: int
    ) -> None:
        from cluster.session import RaySession  # imports ray

        self._log_dir = log_dir.resolve() if log_dir else None
        self._actors: dict[str, Actor] = {}
        self._session = RaySession(address, num_cpus, namespace, store_mib)
        self._owner = os.getpid()
        self._closed = False
        atexit.register(self.close)

    def host(
        self,
        factory: Callable[..., PartT],
        *args: Any,
        name: str,
        resources: Resources = Resources(),
        deadline_s: float | None = 600.0,
        start_deadline_s: float = 600.0,
        max_restarts: int = 0,
        max_concurrency: int = 1,
        env: Mapping[str, str] = {},
        **kwargs: Any,
    ) -> PartT:
        from cluster.caller import pack
        from cluster.proxy import Actor, Blueprint, Hosted

        if self._closed:
            raise HostError(f"cannot host part {name!r}: the cluster is closed")
        _check_name(name, self._actors)
        _check_concurrency(name, max_concurrency)
        self._session.check(name, {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom})
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "resources": dict(resources.custom),
            "max_restarts": 0,  # ours to do: Ray would bring the actor back without the part in it
            "max_concurrency": max_concurrency,
        }
        if env:  # merged by Ray into the job's own environment; nothing else of that is touched
            options["runtime_env"] = {"env_vars": dict(env)}
        actor = Actor(
            Blueprint(
                name=name,
                build=pack(f"the construction of part {name!r}", "build", factory, args, kwargs),
                options=options,
                threads=env.get("OMP_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS"),
                log_file=self._log_dir / f"{name}.log" if self._log_dir else None,
                start_deadline_s=start_deadline_s,
                max_restarts=max_restarts,
            )
        )
        self._actors[name] = actor
        return cast(PartT, Hosted(actor, deadline_s))

    def apply(self, part: Any, function: Callable[..., ResultT], *args: Any) -> ResultT:
        from cluster.proxy import Hosted

        return cast(ResultT, part.apply(function, args)) if isinstance(part, Hosted) else function(part, *args)

    def submit(self, part: Any, method: str, *args: Any, **kwargs: Any) -> Pending:
        return cast(Pending, part.submit(method, *args, **kwargs))

    def with_deadline(self, part: PartT, deadline_s: float | None) -> PartT:
        return cast(PartT, cast(Any, part).with_deadline(deadline_s))

    def caller(self, part: PartT) -> PartT:
        from cluster.proxy import Hosted

        if not isinstance(part, Hosted):
            raise HostError(f"{type(part).__name__} lives in this process, where others cannot call it: host it")
        return cast(PartT, part.caller())

    def restarts(self, part: Any) -> int:
        return cast(int, part.restarts)

    def close(self) -> None:
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        from cluster.proxy import end_all

        try:
            end_all(list(self._actors.values()), _GRACE_SECONDS)
        finally:
            self._session.close()


def _check_name(name: str, taken: Container[str]) -> None:
    if name in taken or not re.fullmatch(r"[\w.-]+", name):
        raise HostError(f"part name {name!r} is taken, or not fit for a file name: choose another")


def _check_concurrency(name: str, max_concurrency: int) -> None:
    if max_concurrency < 1:
        raise HostError(f"part {name!r}: max_concurrency must be at least 1, got {max_concurrency}")


@final
class _Done:
    """What a local call has given already."""

    def __init__(self, value: Any, error: Exception | None) -> None:
        self._value, self._error = value, error

    def done(self) -> bool:
        return True

    def result(self, deadline_s: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return self._value
