"""``metrics.jsonl`` and ``samples.jsonl``: one valid JSON object a line, on disk before the step is over."""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.protocols import Metrics
from align.tracking.samples import SampleRow

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


def encode(step: int, metrics: Metrics) -> dict[str, Any]:
    """The JSON object of a step. JSON has no NaN: such values are ``null`` and named in ``nonfinite``.

    ``nonfinite`` lists ``[name, "nan" | "inf" | "-inf"]`` pairs, so that reading gives the number back.
    """
    odd = [[name, str(value)] for name, value in sorted(metrics.items()) if not math.isfinite(value)]
    row: dict[str, Any] = {"step": step}
    row |= {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    return row | ({"nonfinite": odd} if odd else {})


def decode(row: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """The inverse of :func:`encode`."""
    metrics = {name: value for name, value in row.items() if name not in ("step", "nonfinite")}
    return int(row["step"]), metrics | {name: float(text) for name, text in row.get("nonfinite", [])}


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Every step in ``path``. A last line that a running or killed writer has not finished is left out.

    Raises ``UserError`` naming the line when any other line is not JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a line of metrics ({error}); remove this line") from error


class LineFile:
    """A file that only grows by whole lines, each flushed and fsynced, and that can be cut back to an offset.

    The file is touched with the first line. Lines that an earlier run left behind without a checkpoint to continue
    from are moved aside, never overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._handle: int | None = None

    @property
    def offset(self) -> int:
        """The length of the file in bytes, all of it whole lines."""
        return self._offset

    def rewind(self, offset: int) -> None:
        """Forgets everything after ``offset``, a torn last line included.

        Raises ``UserError`` when the file has lost lines that the checkpoint counts on.
        """
        self.close()
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < offset or (offset and not self._line_ends_at(offset)):
            raise UserError(
                f"{self._path} does not reach the {offset} bytes that the checkpoint counts on (it has {size}): "
                "put the file back, or start a new run folder"
            )
        if size > offset:
            os.truncate(self._path, offset)
        self._offset = offset

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the rows, all or none; they are on the disk when this returns."""
        handle = self._handle if self._handle is not None else self._open()
        data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        # A lone surrogate (half a character at a cut) must not end a run.
        left = memoryview(data.encode("utf-8", errors="replace"))
        size = len(left)
        try:
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError as error:
            # A half-written line would make the file unreadable for everyone else.
            os.ftruncate(handle, self._offset)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left for {self._path}: free some, then run the same command again"
                ) from error
            raise
        self._offset += size

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._offset == 0 and self._path.exists() and self._path.stat().st_size:
            number = 1
            while (aside := self._path.with_name(f"{self._path.name}.old-{number}")).exists():
                number += 1
            self._path.rename(aside)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return self._handle

    def _line_ends_at(self, offset: int) -> bool:
        with self._path.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"


class JsonlSink:
    """Writes ``metrics.jsonl`` (one line a step) and ``samples.jsonl`` (one line a sample) in ``folder``.

    The state holds both lengths: loading it cuts the files back, so that a resumed run's files equal those of a run
    that was never stopped.
    """

    name = "jsonl"

    def __init__(self, folder: Path) -> None:
        self._metrics = LineFile(folder / METRICS_FILE)
        self._samples = LineFile(folder / SAMPLES_FILE)

    def open(self) -> None:
        """Nothing to do: files open with their first line, when it is known whether the run is a resumed one."""

    def phase(self, name: str) -> None:
        """Phases are in the metrics already."""

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        plain = [{"step": step} | dataclasses.asdict(row) for row in rows]
        for row in plain:
            if row["reward"] is not None and not math.isfinite(row["reward"]):
                row["reward"] = None
        self._samples.append(plain)

    def media(self, name: str, file: Path, step: int) -> None:
        """Pictures are for elsewhere."""

    def write(self, step: int, metrics: Metrics) -> None:
        self._metrics.append([encode(step, metrics)])

    def close(self, failed: bool = False) -> None:
        self._metrics.close()
        self._samples.close()

    def state_dict(self) -> dict[str, Any]:
        return {"metrics_offset": self._metrics.offset, "samples_offset": self._samples.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._metrics.rewind(int(state["metrics_offset"]))
        self._samples.rewind(int(state["samples_offset"]))
