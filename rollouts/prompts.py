"""Prompts: where they come from, and in which order they are used."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollouts.types import Message, Prompt


class PromptError(ValueError):
    """A prompt source cannot be used; the message is one line that says what to do."""


def gym_prompts(
    task: str,
    *,
    size: int,
    seed: int,
    config: Mapping[str, Any],
    distinct: bool = False,
    exclude: frozenset[str] = frozenset(),
) -> list[Prompt]:
    """``size`` problems of a reasoning-gym task, none of them among the questions ``exclude``.

    Problems come in the order of reasoning-gym's generator for ``seed``, with its frequencies: a question that comes
    again is a prompt of its own, unless ``distinct``. Excluding goes by the text, because two seeds alone do not keep
    sets apart: a task of one-digit sums has a few hundred problems in all. Where a task runs out of problems the result
    is shorter; nothing at all is an error.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise PromptError("gym: prompts need the package 'reasoning-gym': run ./setup.sh, or pip install it") from error
    if task not in DATASETS:
        raise PromptError(f"reasoning-gym has no task {task!r}{_nearest(task, DATASETS)}")
    # Many more draws than are wanted find what is left of a small task, and an end where nothing is.
    draws = size * 8 + 1024
    try:
        dataset = create_dataset(task, size=draws, seed=seed, **config)
    except (TypeError, AssertionError, ValueError) as error:
        raise PromptError(f"reasoning-gym refuses the config of task {task!r}: {error}") from error
    prompts: list[Prompt] = []
    seen: Counter[str] = Counter()
    for entry in dataset:
        question, answer = entry["question"], entry["answer"]
        if question in exclude or (distinct and seen[question]):
            continue
        seen[question] += 1
        prompts.append(
            Prompt(
                id=f"gym:{task}:{question}" + (f"#{seen[question]}" if seen[question] > 1 else ""),
                messages=(Message("user", question),),
                reference=None if answer is None else f"{question.rstrip(' =?:')} = {answer}",
                answer=answer,
                metadata={"task": task, "entry": entry},
            )
        )
        if len(prompts) == size:
            break
    if not prompts:
        raise PromptError(f"reasoning-gym task {task!r} gave no problem outside the held-out set: enlarge its config")
    return prompts


def record_prompts(
    records: Iterable[Mapping[str, Any]],
    *,
    source: str,
    prompt_field: str,
    reference_field: str | None,
    answer_field: str | None,
    size: int | None,
    exclude: frozenset[str] = frozenset(),
) -> list[Prompt]:
    """Prompts from dictionaries; the prompt is a string or a list of ``{"role", "content"}`` messages."""
    wanted = [f for f in (prompt_field, reference_field, answer_field) if f]
    prompts: list[Prompt] = []
    for number, record in enumerate(records, start=1):
        if missing := [f for f in wanted if f not in record]:
            has = ", ".join(map(str, record)) or "none"
            raise PromptError(f"{source}, record {number}: no field {missing[0]!r} (its fields: {has})")
        raw = record[prompt_field]
        messages = _messages(raw, f"{source}, record {number}, field {prompt_field!r}")
        prompt = Prompt(
            id=f"{source}:{number}",
            messages=messages,
            reference=str(record[reference_field]) if reference_field else None,
            answer=str(record[answer_field]) if answer_field else None,
        )
        if question_of(prompt) not in exclude:
            prompts.append(prompt)
        if size is not None and len(prompts) == size:
            break
    if not prompts:
        raise PromptError(f"{source} holds no prompts outside the held-out set")
    return prompts


def jsonl_records(path: Path) -> Iterable[Mapping[str, Any]]:
    """The objects of a JSON-lines file, one a line; empty lines are passed over."""
    return (line.record for line in jsonl_lines(path))


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One object of a JSON-lines file; ``end`` is the file's byte offset after its line."""

    number: int
    end: int
    record: Mapping[str, Any]


def jsonl_lines(path: Path, after: int = 0, offset: int = 0) -> Iterator[JsonLine]:
    """The objects of a JSON-lines file with their line numbers; empty lines are passed over.

    ``after`` and ``offset`` are the ``number`` and ``end`` of the line to go on from.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for number, raw in enumerate(iter(file.readline, b""), start=after + 1):
                offset += len(raw)
                if raw.strip():
                    yield JsonLine(number, offset, _json_object(raw, f"{path}:{number}"))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror}): check the path in the recipe") from error


def _json_object(raw: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PromptError(f"{where}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(record, dict):
        raise PromptError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def hub_records(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    """The records of a data set on the Hugging Face hub, streamed."""
    import datasets

    try:
        records: Iterable[Mapping[str, Any]] = datasets.load_dataset(name, split=split, streaming=True)
        return records
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PromptError(f"hub:{name}: cannot be loaded ({first}): check name and network, or use jsonl:") from error


def question_of(prompt: Prompt) -> str:
    """The text of the last user message: what two sets must not share."""
    return prompt.messages[-1].content


def _messages(raw: Any, where: str) -> tuple[Message, ...]:
    if isinstance(raw, str) and raw.strip():
        return (Message("user", raw),)
    if isinstance(raw, list) and raw and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in raw):
        return tuple(Message(str(m["role"]), str(m["content"])) for m in raw)
    raise PromptError(f"{where}: expected text or a list of messages with role and content")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


class PromptStream:
    """Prompts in a seeded order, each once an epoch, for ever; the position is its state."""

    def __init__(self, prompts: list[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._position = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def peek(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts, without using them up."""
        return [self._at(self._position + i) for i in range(count)]

    def take(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts."""
        prompts = self.peek(count)
        self._position += count
        return prompts

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"]

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self._prompts))
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        return self._prompts[order[index]]
