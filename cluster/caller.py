"""Calls to a part in another process: how a request goes out and its answer comes back, and who else may call."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.errors import DeadlineExceeded, HostDied, HostError
from cluster.part import Raised, Returned


@dataclass(frozen=True, slots=True)
class Label:
    """What messages say of a part."""

    name: str
    log_file: Path | None

    def __str__(self) -> str:
        return f"part {self.name!r}"

    @property
    def log(self) -> str:
        """The end of a message."""
        return f"; its log: {self.log_file}" if self.log_file else ""

    def fetch(self, reference: Any, what: str, deadline_s: float | None) -> Returned | Raised:
        """The answer to the request ``what``; :class:`HostError` and its kinds where there is none.

        They are told apart here from the same errors of the part itself, which are in the answer.
        """
        try:
            answer: Returned | Raised = pickle.loads(ray.get(reference, timeout=deadline_s))
        except GetTimeoutError:
            raise DeadlineExceeded(f"{self} did not answer {what} within {deadline_s:g} s{self.log}") from None
        except RayTaskError as error:  # our side of the actor failed, not the part
            raise HostError(f"{self} cannot run {what}: {first_line(error.cause)}{self.log}") from error
        except RayError as error:
            raise HostDied(f"{self} died before it had answered {what} ({first_line(error)}){self.log}") from error
        return answer

    def value(self, answer: Returned | Raised) -> Any:
        """What the part has returned, or the exception that it has raised."""
        if isinstance(answer, Raised):
            self._raise(answer)
        return answer.value

    def _raise(self, answer: Raised) -> NoReturn:
        error: Exception
        try:
            error = pickle.loads(answer.error) if answer.error is not None else HostError(answer.summary)
        except Exception:  # its type exists only where the part lives
            error = HostError(answer.summary)
        error.add_note(f"raised in {self}{self.log}\n{answer.traceback}")
        raise error


@final
class Caller:
    """A part's methods, for whatever process this is sent to: see :meth:`cluster.host.Cluster.caller`.

    It knows one life of the part, and neither ends nor restarts it. A call that takes longer than ``deadline_s``
    seconds (None: any time will do) is given up with :class:`DeadlineExceeded`, and every call of a life that has ended
    raises :class:`HostDied`.
    """

    def __init__(self, label: Label, handle: Any, methods: frozenset[str], deadline_s: float | None) -> None:
        self._label, self._handle, self._methods = label, handle, methods
        self._deadline_s = deadline_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Underscores first: while it is being unpickled there are no attributes yet.
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(no_method(self.__dict__.get("_label", "part"), name))

        def call(*args: Any, **kwargs: Any) -> Any:
            what = f"{name}()"
            reference = self._handle.run.remote(pack(what, "call", name, args, kwargs))
            return self._label.value(self._label.fetch(reference, what, self._deadline_s))

        return call

    def __reduce__(self) -> Any:
        return Caller, (self._label, self._handle, self._methods, self._deadline_s)


def pack(what: str, *request: Any) -> bytes:
    """A request in bytes; ``what`` names it when it cannot be pickled."""
    try:
        return bytes(cloudpickle.dumps(request))  # type: ignore[no-untyped-call]
    except Exception as error:
        raise HostError(f"the arguments of {what} cannot be sent to another process: {error}") from error


def no_method(part: Any, name: str) -> str:
    """What is wrong with asking ``part`` for ``name``."""
    return f"hosted {part} has no method {name!r} (its attributes stay where it lives)"


def first_line(error: BaseException) -> str:
    """The first line of Ray's many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
