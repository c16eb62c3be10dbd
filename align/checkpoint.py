"""The run folder: whose recipe it is, one writer at a time, checkpoints that are whole or absent."""

import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError

MANIFEST = "manifest.json"

Apply = Callable[..., Any]
"""``apply(part, function, *args)`` runs ``function(part, *args)`` where the part lives (``Cluster.apply``)."""


class RunFolder:
    """A folder that one run writes. ``checkpoints/step-000012`` holds a file for each part and a manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the folder and locks it. Raises ``UserError`` when it cannot be written or another run holds it."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing {self.path}: wait for it, or set run.dir to a new folder"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path} ({error.strerror}): set run.dir to another folder"
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, recipe: Mapping[str, Any], text: str) -> None:
        """Writes the resolved recipe, or refuses a folder that belongs to a different one.

        Where a run lives, how it is shown and how long it is may change between a start and its continuation, and the
        end of its offline steps while that lies ahead.
        """
        path = self.path / "recipe.json"
        checkpoint = self.latest()
        if path.exists() and (checkpoint is not None or (self.path / "summary.md").exists()):
            done = int(checkpoint.name.removeprefix("step-")) if checkpoint else sys.maxsize
            before = json.loads(path.read_text())
            changes = [
                f"{self.path} belongs to another recipe: {key} was {_short(old)} and is {_short(new)} now"
                for key, old, new in _differences(before, dict(recipe))
                if not _may_change(key) and not _is_still_ahead(key, old, new, done)
            ]
            if changes:
                raise UserError(*changes, "continue it with its own recipe, or set run.dir to a new folder")
        write_atomically(path, json.dumps(recipe, indent=2) + "\n")
        write_atomically(self.path / "recipe.yaml", text)

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [p for p in (self.path / "checkpoints").glob("step-*") if _is_whole(p)]
        return max(whole, default=None, key=lambda p: p.name)

    def save(self, step: int, parts: Mapping[str, Any], apply: Apply, keep: int) -> None:
        """Writes a checkpoint of all parts, then deletes the oldest beyond ``keep``.

        Each part is written by the process it lives in. The manifest comes last and the folder is renamed into place,
        so that a kill at any moment leaves the previous checkpoint as the newest whole one.
        """
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        temporary = folder.with_name(folder.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            sizes = {}
            for name, part in parts.items():
                file = temporary / f"{name}.pt"
                apply(part, _write_state, str(file.resolve()))
                sizes[file.name] = file.stat().st_size
            write_atomically(temporary / MANIFEST, json.dumps({"step": step, "files": sizes}, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            _sync_directory(folder.parent)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            previous = self.latest()
            kept = f"checkpoint {previous.name} is whole, and the same command continues from it" if previous else ""
            raise UserError(
                f"no space left for a checkpoint in {folder.parent}: free some, or set run.dir to another disk; "
                f"{kept or 'nothing was saved yet'}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in sorted(p for p in folder.parent.glob("step-*") if _is_whole(p))[:-keep]:
            shutil.rmtree(old)

    def load(self, folder: Path, parts: Mapping[str, Any], apply: Apply) -> int:
        """Puts every part back to where ``folder`` has it; returns the step."""
        for name, part in parts.items():
            apply(part, _read_state, str((folder / f"{name}.pt").resolve()))
        return int(json.loads((folder / MANIFEST).read_text())["step"])


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_state(part: Any, path: str) -> None:
    state = part.state_dict()
    needed = _bytes_of(state)
    free = shutil.disk_usage(os.path.dirname(path)).free
    if free < needed:
        # torch.save reports a full disk as an internal assertion of its writer; better to know before.
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", path)
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _read_state(part: Any, path: str) -> None:
    part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _bytes_of(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_bytes_of(v) for v in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_bytes_of(v) for v in state)
    return 64


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{key}.{k}" if key else k)]
    return [] if before == now else [(key, before, now)]


def _is_still_ahead(key: str, old: object, new: object, done: int) -> bool:
    """Whether the switch to online experience moves, and all steps so far would have been what they were."""
    return key == "schedule.offline_steps" and isinstance(old, int) and isinstance(new, int) and done <= min(old, new)


def _may_change(key: str) -> bool:
    free = ("tracking", "cluster", "run", "schedule.total_steps", "schedule.keep_checkpoints")
    return any(key == f or key.startswith(f + ".") for f in free)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
