"""Memory of a program and all that it started, sampled while it runs."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


def tree_bytes(root: psutil.Process) -> int:
    """Proportional set size of a process and its descendants, in bytes: shared pages count once."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


class PeakMemory:
    """Samples this process's tree every ``interval_s`` seconds; ``peak_bytes`` is the largest sum seen."""

    def __init__(self, interval_s: float = 2.0) -> None:
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes(me))
            if self._stop.wait(self._interval_s):
                return
