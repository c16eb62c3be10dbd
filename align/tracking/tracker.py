"""The tracker that the loop sees: it times phases, joins metrics, and hands every step to the sinks."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from align.protocols import Metrics
from align.tracking.samples import SampleRow

RESERVED = ("step", "nonfinite")
TIMING = "timing_s/"


class Sink(Protocol):
    """A place that numbers and samples go to. Calls come from one thread, steps never go backwards."""

    @property
    def name(self) -> str:
        """The key of this sink's state in a checkpoint."""
        ...

    def open(self) -> None:
        """Gets ready; called once, before anything else but ``load_state_dict``."""
        ...

    def phase(self, name: str) -> None:
        """The loop is now in phase ``name``; empty between phases."""
        ...

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Samples of ``step``; always before the ``write`` of that step."""
        ...

    def media(self, name: str, file: Path, step: int) -> None:
        """A picture or video (``.mp4``) of ``step``; always before the ``write`` of that step."""
        ...

    def write(self, step: int, metrics: Metrics) -> None:
        """The numbers of a finished step."""
        ...

    def close(self, failed: bool = False) -> None:
        """Releases everything; safe to call twice and without ``open``."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def join(updates: Iterable[Metrics]) -> dict[str, float]:
    """One number per name, over the updates that have the name.

    Names ending in ``_max`` or ``_min`` keep the extreme, names starting with ``count/`` or ending in ``_total`` are
    summed, all others are averaged. One NaN makes the result NaN, so that nothing hides it. Raises ``ValueError`` for
    a reserved name and ``TypeError`` for a value that is no number, naming it.
    """
    values: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.items():
            if name in RESERVED or name.startswith(TIMING):
                raise ValueError(f"metric {name!r}: this name belongs to the tracker, choose another")
            try:
                number = float(value)
            except (TypeError, ValueError) as error:
                raise TypeError(f"metric {name!r} is {type(value).__name__}, not a number") from error
            values.setdefault(name, []).append(number)
    return {name: _reduce(name, numbers) for name, numbers in values.items()}


def _reduce(name: str, numbers: list[float]) -> float:
    if any(math.isnan(number) for number in numbers):
        return math.nan
    if name.endswith("_max"):
        return max(numbers)
    if name.endswith("_min"):
        return min(numbers)
    # Not fsum: it raises where +inf meets -inf, and a diverged run must still be logged.
    total = sum(numbers)
    return total if name.startswith("count/") or name.endswith("_total") else total / len(numbers)


class RunTracker:
    """Implements :class:`align.protocols.Tracker`. Use it as a context manager, so that sinks are closed on any exit.

    ``timing_s/step`` is the wall time from the previous log to this one, ``timing_s/other`` what no phase claimed, so
    that the phases and ``other`` add up to the step. A phase inside another takes its time away from the outer one.
    Phases belong to the loop's thread; work that overlaps it reports seconds of its own under another name.
    ``perf/elapsed_s`` counts wall time since the first start, pauses between kill and resume excluded.
    """

    def __init__(self, sinks: Sequence[Sink], clock: Callable[[], float] = time.perf_counter) -> None:
        self._sinks = tuple(sinks)
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._rows: list[SampleRow] = []
        self._opened = False
        self._closed = False
        self._step = -1
        self._elapsed_before = 0.0
        self._started = self._step_began = self._mark = 0.0

    def __enter__(self) -> Self:
        # The sinks that did open are closed again, or a failing one would leave the terminal without its cursor.
        try:
            self._open()
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall time spent inside to ``timing_s/<name>`` of the current step."""
        if name in ("step", "other"):
            raise ValueError(f"phase {name!r}: this name belongs to the tracker, choose another")
        self._open()
        self._charge()
        self._stack.append(name)
        self._tell_phase()
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()
            self._tell_phase()

    def samples(self, rows: Iterable[SampleRow]) -> None:
        """Keeps samples of the current step; they are written by the next ``log``."""
        self._rows.extend(rows)

    def media(self, name: str, file: Path, step: int) -> None:
        """Hands a picture or video of the current step to every sink."""
        self._open()
        for sink in self._sinks:
            sink.media(name, file, step)

    def log(self, step: int, *metrics: Metrics) -> None:
        """Ends the step: joins the metrics (:func:`join`), adds the timings and writes to every sink."""
        if step <= self._step:
            raise ValueError(f"step {step} was logged after step {self._step}; steps only go forward")
        self._open()
        joined = join(metrics)
        now = self._charge()
        joined |= {TIMING + name: seconds for name, seconds in self._seconds.items()}
        step_seconds = now - self._step_began
        joined[TIMING + "other"] = max(0.0, step_seconds - sum(self._seconds.values()))
        joined[TIMING + "step"] = step_seconds
        joined["perf/elapsed_s"] = self._elapsed_before + now - self._started
        rows, self._rows = self._rows, []
        self._seconds, self._step_began, self._step = {}, now, step
        for sink in self._sinks:
            if rows:
                sink.samples(step, rows)
            sink.write(step, joined)

    def close(self, failed: bool = False) -> None:
        """Closes every sink, the last opened first; one that fails does not keep the others open."""
        if self._closed:
            return
        self._closed = True
        errors: list[Exception] = []
        for sink in reversed(self._sinks):
            try:
                sink.close(failed)
            except Exception as error:
                errors.append(error)
        # While the run itself is failing its own error is the one to show.
        if errors and not failed:
            raise errors[0]

    def state_dict(self) -> dict[str, Any]:
        """The last logged step, the seconds spent, and every sink's state under its name."""
        elapsed = self._elapsed_before + (self._clock() - self._started if self._opened else 0.0)
        return {
            "step": self._step,
            "elapsed_s": elapsed,
            "sinks": {sink.name: sink.state_dict() for sink in self._sinks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``; a sink that the checkpoint does not know starts afresh."""
        self._step = int(state["step"])
        self._elapsed_before = float(state["elapsed_s"])
        for sink in self._sinks:
            if sink.name in state["sinks"]:
                sink.load_state_dict(state["sinks"][sink.name])

    def _open(self) -> None:
        if self._opened:
            return
        for sink in self._sinks:
            sink.open()
        self._opened = True
        self._started = self._step_began = self._mark = self._clock()

    def _charge(self) -> float:
        """Gives the time since the last mark to the innermost phase; returns now."""
        now = self._clock()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now
        return now

    def _tell_phase(self) -> None:
        for sink in self._sinks:
            sink.phase(self._stack[-1] if self._stack else "")
