"""How far a long job is: a bar with rate and time left in a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class ItemProgress(Protocol):
    """Is told how many items are done."""

    def start(self, total: int, done: int) -> None:
        """``done`` of ``total`` items are there already."""
        ...

    def advance(self, items: int, failed: int) -> None:
        """So many more are done, of which ``failed`` have no score."""
        ...

    def close(self) -> None:
        """Gives the terminal back."""
        ...


class NoProgress:
    """Shows nothing."""

    def start(self, total: int, done: int) -> None: ...

    def advance(self, items: int, failed: int) -> None: ...

    def close(self) -> None: ...


class ProgressBar:
    """Shows items done, items a second and time left on ``file`` (standard error unless given).

    Live on a real terminal; else a line every ``plain_every_s`` seconds and one at the end, fit for job logs. The rate
    is that of this run: what was done before it does not count. ``unit`` is what items are called; ``clock`` gives
    seconds.
    """

    def __init__(
        self,
        title: str,
        file: TextIO | None = None,
        *,
        unit: str = "items",
        plain_every_s: float = PLAIN_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._unit = title, unit
        self._file = file or sys.stderr
        self._every = plain_every_s
        self._clock = clock
        self._total = self._before = self._items = self._failed = 0
        self._began = self._said = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._began = self._said = self._clock()
        console = Console(file=self._file)
        # Not is_terminal alone: FORCE_COLOR sets it in CI logs too, and those cannot be redrawn.
        if self._file.isatty() and console.is_terminal and not console.is_dumb_terminal:
            columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=console)
            self._task = self._bar.add_task(self._title, total=total, completed=done, rate="")
            self._bar.start()
        elif done:
            self._print(f"{self._title}: going on after {done} of {total} {self._unit}")

    def advance(self, items: int, failed: int) -> None:
        self._items += items
        self._failed += failed
        done = self._before + self._items
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, rate=self._rate())
        elif done >= self._total or self._clock() - self._said >= self._every:
            self._said = self._clock()
            left = f", {_duration(self._left())} left" if done < self._total else ""
            self._print(f"{self._title}: {done} of {self._total} {self._unit}, {self._rate()}{left}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._per_second():.3g} {self._unit}/s{failed}"

    def _per_second(self) -> float:
        return self._items / max(self._clock() - self._began, 1e-9)

    def _left(self) -> float:
        return (self._total - self._before - self._items) / self._per_second()

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
