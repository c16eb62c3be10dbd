"""Files that are whole or absent."""

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rewards.polar.types import PolarError
from rollouts.whole_files import replacing


def whole_file(path: Path) -> AbstractContextManager[Path]:
    """A temporary path beside ``path``, which takes its place when the block ends well; :class:`PolarError` if not."""
    return replacing(path, PolarError)


def write_text(path: Path, text: str) -> None:
    """The whole text or none of it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, keys in the order given, no NaN."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Plain values with None in the place of numbers that JSON does not know."""
    match content:
        case dict():
            return {key: finite(part) for key, part in content.items()}
        case list() | tuple():
            return [finite(part) for part in content]
        case float() if not math.isfinite(content):
            return None
        case _:
            return content
