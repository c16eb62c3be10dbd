"""Lines of a file to score: what they may hold, the items that they are, and the lines that come of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem, Turns
from rewards.serve.wire import Identity
from rewards.types import ScoreFailure
from rollouts.prompts import PromptError, jsonl_lines
from rollouts.types import Message

ADDED = ("reward", "error", "truncated", "rewards", "errors", "model", "weights")
"""What scoring adds to a record."""
_WRAPPERS = ("sft", "pretrain")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One line; ``where`` is ``file:line``. ``grouped`` where it has ``outputs``, each an item of its own."""

    where: str
    record: Mapping[str, Any]
    items: tuple[PolarItem, ...]
    grouped: bool


def read_records(path: Path) -> Iterator[FileRecord]:
    """The records of a JSON-lines file: ``prompt``, ``reference`` and ``output``, or a list ``outputs``.

    Each is text or a list of messages; ``wrapper`` is ``sft`` unless given; other fields are kept. Raises
    :class:`RewardError` that names ``file:line``.
    """
    lines = jsonl_lines(path)
    while True:
        try:
            line = next(lines, None)
        except PromptError as error:
            raise RewardError(str(error).replace("the path in the recipe", "the path")) from error
        if line is None:
            return
        yield _record(line.record, f"{path}:{line.number}")


def scored(record: FileRecord, scores: Sequence[ItemScore], identity: Identity) -> dict[str, Any]:
    """The record with ``reward`` or ``error``, and ``truncated``; lists of them, named ``rewards`` and ``errors``, with
    null where there is none, for ``outputs``. ``model`` and ``weights`` say who scored."""
    rewards = [None if isinstance(s.score, ScoreFailure) else s.score for s in scores]
    errors = [s.score.reason if isinstance(s.score, ScoreFailure) else None for s in scores]
    truncated = [sorted(s.truncated) for s in scores]
    answer: dict[str, Any] = {"rewards": rewards, "errors": errors, "truncated": truncated}
    if not record.grouped:
        result = {"reward": rewards[0]} if errors[0] is None else {"error": errors[0]}
        answer = {**result, "truncated": truncated[0]}
    return {**record.record, **answer, "model": identity.model, "weights": identity.weights}


def unscored(line: Mapping[str, Any]) -> dict[str, Any]:
    """The record that a line of a scored file was made of."""
    return {name: value for name, value in line.items() if name not in ADDED}


def _record(record: Mapping[str, Any], where: str) -> FileRecord:
    taken = [name for name in ADDED if name in record]
    if taken:
        raise RewardError(f"{where}: {taken[0]!r} is a name that scoring writes: rename it, or score the original file")
    missing = [name for name in ("prompt", "reference") if name not in record]
    if missing:
        raise RewardError(f"{where}: {missing[0]!r} is missing")
    if ("output" in record) == ("outputs" in record):
        raise RewardError(f"{where}: give either 'output', or a list 'outputs' of candidates")
    wrapper = record.get("wrapper", "sft")
    if wrapper not in _WRAPPERS:
        raise RewardError(f"{where}: wrapper {str(wrapper)[:40]!r} is unknown; use sft or pretrain")
    outputs = record.get("outputs", [record.get("output")])
    if not isinstance(outputs, list) or not outputs:
        raise RewardError(f"{where}: 'outputs' must be a list of candidates, at least one")
    grouped = "outputs" in record
    prompt, reference = (_turns(record[name], f"{where}: {name!r}") for name in ("prompt", "reference"))
    names = [f"outputs[{i}]" for i in range(len(outputs))] if grouped else ["output"]
    texts = [_turns(text, f"{where}: {name!r}") for name, text in zip(names, outputs, strict=True)]
    return FileRecord(where, record, tuple(PolarItem(prompt, reference, text, wrapper) for text in texts), grouped)


def _turns(value: Any, where: str) -> Turns:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        return tuple(Message(m["role"], m["content"]) for m in value)
    raise RewardError(f"{where} must be text, or a list of messages with role and content")
