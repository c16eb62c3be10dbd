"""Calls that are made again once an engine has been brought back."""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from rollouts.engines.base import EngineError

T = TypeVar("T")

RETRIES: Final = 2


class Rebuildable(Protocol):
    """An engine, or a part that holds one."""

    def rebuild(self) -> None:
        """Starts it afresh."""
        ...


def call_again(
    call: Callable[[int], T],
    engine: Rebuildable,
    recoverable: tuple[type[Exception], ...],
    *,
    retries: int = RETRIES,
    on_failure: Callable[[], None] = lambda: None,
) -> T:
    """``call(attempt)``, with attempts from 0; made again after a failure, at most ``retries`` times.

    :class:`EngineError` means that the engine has failed: it is rebuilt first. ``recoverable`` are the exceptions
    after which there already is another one, such as a hosted part's that was restarted. ``on_failure`` is called
    before each new attempt. Raises what the last attempt raises, and everything else at once.
    """
    failures: tuple[type[Exception], ...] = (EngineError, *recoverable)
    for attempt in range(retries):
        try:
            return call(attempt)
        except failures as error:
            on_failure()
            if isinstance(error, EngineError):
                engine.rebuild()
    return call(retries)
