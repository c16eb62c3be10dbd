"""The far side of a hosted part: what runs inside the actor's process."""

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import psutil
from ray import cloudpickle, get_runtime_context

from cluster.errors import HostError


@dataclass(frozen=True, slots=True)
class Home:
    """The process that a part lives in: the node's id, the process number, and when the process started (s)."""

    node: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class Returned:
    """The value of a call."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The exception of a call: pickled where that is possible, and in words."""

    error: bytes | None
    summary: str
    traceback: str


@final
class PartServer:
    """Holds one part and does what it is asked to: one request at a time, or so many as the actor has threads.

    Requests and answers are bytes that this class and the proxy pickle themselves: arrays then arrive writable, as in
    one process, and a failure to pickle or unpickle is an answer like any other.
    """

    def __init__(self, log_file: str | None, threads: str | None) -> None:
        # Out of the terminal's process group: Ctrl-C is the driver's to handle, and the processes that a part has
        # started can be found by the group that they share with it.
        os.setpgid(0, 0)
        # Ray limits a worker to the CPUs that it has booked, which are book-keeping here: parts that take turns may
        # each use the whole machine. Set before anything imports torch.
        os.environ["OMP_NUM_THREADS"] = threads or str(len(os.sched_getaffinity(0)))
        if log_file is not None:
            _redirect(Path(log_file))
        self.part: Any = None

    def run(self, request: bytes) -> bytes:
        """Does ``request``, a pickled ``(action, *arguments)``; answers with a pickled Returned or Raised."""
        try:
            action, *arguments = pickle.loads(request)
            value = _ACTIONS[action](self, *arguments)
        except Exception as error:
            return pickle.dumps(_raised(error))
        try:
            return bytes(cloudpickle.dumps(Returned(value)))  # type: ignore[no-untyped-call]
        except Exception as error:
            return pickle.dumps(_raised(HostError(f"the result cannot be sent to another process: {error}")))


# Functions, and not methods, because Ray wraps the methods of an actor class and shows in every traceback.


def _home(server: PartServer) -> Home:
    process = psutil.Process()
    return Home(get_runtime_context().get_node_id(), process.pid, process.create_time())


def _build(
    server: PartServer, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> frozenset[str]:
    part = server.part = factory(*args, **kwargs)
    return frozenset(name for name in dir(part) if not name.startswith("_") and _is_method(part, name))


def _call(server: PartServer, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(server.part, method)(*args, **kwargs)


def _apply(server: PartServer, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(server.part, *args)


_ACTIONS: Mapping[str, Callable[..., Any]] = {"home": _home, "build": _build, "call": _call, "apply": _apply}


def _is_method(part: Any, name: str) -> bool:
    if isinstance(getattr(type(part), name, None), property):
        return False  # looking would run it
    return callable(getattr(part, name, None))


def _raised(error: Exception) -> Raised:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    words = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    summary = f"{type(error).__name__}: {error}"
    try:
        blob = bytes(cloudpickle.dumps(error))  # type: ignore[no-untyped-call]
        pickle.loads(blob)  # an exception that pickles need not unpickle: its __init__ may want other arguments
    except Exception:
        return Raised(None, summary, words)
    return Raised(blob, summary, words)


def _redirect(log_file: Path) -> None:
    """Sends this process's output to ``log_file``, that of C code and of child processes included."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
