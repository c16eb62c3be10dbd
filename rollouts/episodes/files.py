"""Files that are whole or absent, and the error of everything that has to do with episodes on disk."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rollouts.whole_files import replacing


class EpisodeError(ValueError):
    """Episodes cannot be written, read or made; the message is one line that says what to do."""


def whole_file(path: Path) -> AbstractContextManager[Path]:
    """A temporary path beside ``path``, which takes its place if the block ends well; else :class:`EpisodeError`."""
    return replacing(path, EpisodeError)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which must not be there yet, and is it if the block ends well.

    Raises :class:`EpisodeError` where there is something, and where the disk refuses.
    """
    if path.exists() or path.is_symlink():
        raise EpisodeError(f"{path}: exists already; give a folder that does not")
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield scratch
        # Temporary folders are their owner's alone.
        scratch.chmod(0o755)
        scratch.rename(path)
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, keys in the order given, no NaN."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises :class:`EpisodeError` where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise EpisodeError(f"{path}: not a JSON file; it is damaged, or something else wrote it") from error
    if not isinstance(content, dict):
        raise EpisodeError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
