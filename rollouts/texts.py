"""Texts whose beginnings are continued: where they come from. Each has an id that tells its source."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rollouts.prompts import PromptError

Text = tuple[str, str]
"""An id and the text."""


def record_texts(
    records: Iterable[Mapping[str, Any]], *, source: str, field: str, size: int | None = None
) -> Iterator[Text]:
    """The texts in a field of dictionaries; empty ones are passed over.

    Raises :class:`rollouts.prompts.PromptError` naming the record that lacks the field or has no text in it.
    """
    return islice(_record_texts(records, source, field), size)


def _record_texts(records: Iterable[Mapping[str, Any]], source: str, field: str) -> Iterator[Text]:
    for number, record in enumerate(records, start=1):
        if field not in record:
            has = ", ".join(map(str, record)) or "none"
            raise PromptError(f"{source}, record {number}: no field {field!r} (its fields: {has})")
        text = record[field]
        if not isinstance(text, str):
            raise PromptError(f"{source}, record {number}, field {field!r}: expected text, got {type(text).__name__}")
        if text.strip():
            yield f"{source}:{number}", text


def file_texts(path: str, *, passage_chars: int, size: int | None = None) -> Iterator[Text]:
    """Passages of a text file: paragraphs (between empty lines) put together until there are ``passage_chars``.

    ``path`` is a file, or ``pkg:PACKAGE/FILE`` inside an installed package. What is left at the end is a passage when
    it is at least half as long. Raises :class:`rollouts.prompts.PromptError` when the file cannot be read.
    """
    try:
        whole = _located(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PromptError(f"{path}: cannot be read ({reason}): check the path in the recipe") from error
    return islice(_passages(path, whole, passage_chars), size)


def _passages(source: str, whole: str, passage_chars: int) -> Iterator[Text]:
    paragraphs: list[str] = []
    number = length = 0
    for paragraph in (p.strip() for p in whole.replace("\r\n", "\n").split("\n\n")):
        if not paragraph:
            continue
        paragraphs.append(paragraph)
        length += len(paragraph)
        if length >= passage_chars:
            number += 1
            yield f"{source}:{number}", "\n\n".join(paragraphs)
            paragraphs, length = [], 0
    if 2 * length >= passage_chars:
        yield f"{source}:{number + 1}", "\n\n".join(paragraphs)


def _located(path: str) -> Path:
    if not path.startswith("pkg:"):
        return Path(path).expanduser()
    package, _, relative = path.removeprefix("pkg:").partition("/")
    # find_spec, not import: the package is wanted for its file alone.
    spec = importlib.util.find_spec(package) if package.isidentifier() and relative else None
    if spec is None or not spec.submodule_search_locations:
        raise PromptError(f"{path}: write pkg:PACKAGE/FILE with an installed package")
    return Path(next(iter(spec.submodule_search_locations))) / relative
