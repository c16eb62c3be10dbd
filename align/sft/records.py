"""Prompts and completions in TRL's two formats, checked before anything is trained on."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from align.errors import UserError
from align.sft.config import WorkedData
from align.sft.explore_execute import chat_record
from align.sft.scripted import steps_in_order
from rollouts.prompts import jsonl_records, question_of
from rollouts.types import Prompt

Record = dict[str, Any]
Kind = Literal["text", "chat"]


def jsonl_examples(path: Path, size: int | None = None) -> list[Record]:
    """The first ``size`` records of a file, or all; other fields than ``prompt`` and ``completion`` are left out.

    Both fields are text (standard format: no chat template is applied) or both are lists of messages (conversational).
    Raises ``UserError`` naming the record that has neither form, or another form than the first.
    """
    records: list[Record] = []
    for number, raw in enumerate(islice(jsonl_records(path), size), start=1):
        where = f"{path}, record {number}"
        if missing := [name for name in ("prompt", "completion") if name not in raw]:
            raise UserError(
                f"{where}: no field {missing[0]!r}; supervised training needs 'prompt' and 'completion' (it has: "
                f"{', '.join(map(str, raw)) or 'none'})"
            )
        kinds = [_kind(raw[name], f"{where}, field {name!r}") for name in ("prompt", "completion")]
        if kinds[0] != kinds[1]:
            raise UserError(f"{where}: prompt is {kinds[0]} and completion is {kinds[1]}; make both the same")
        if records and kinds[0] != _kind(records[0]["prompt"], where):
            raise UserError(f"{where}: is {kinds[0]}, the records before are not; make all of a file the same")
        records.append({"prompt": raw["prompt"], "completion": raw["completion"]})
    if not records:
        raise UserError(f"{path}: holds no record")
    return records


def worked_examples(prompts: Iterable[Prompt], data: WorkedData) -> list[Record]:
    """One record a question, with the answer that ``data`` asks for; a question that comes again is used once."""
    questions: dict[str, Prompt] = {}
    for prompt in prompts:
        questions.setdefault(question_of(prompt), prompt)
    records = []
    for prompt in questions.values():
        answer = steps_in_order(prompt) if data.answers == "steps" else prompt.reference
        if answer is None:
            raise UserError(f"prompt {prompt.id!r} has no worked answer: name it with prompts.train.reference_field")
        records.append(chat_record(prompt, answer))
    return records


def asked(record: Record) -> str:
    """The text of a record's prompt, of a conversation its last message: what must not stand in the held-out set."""
    prompt = record["prompt"]
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def fit_template(records: Sequence[Record], tokenizer: Any) -> list[Record]:
    """Conversations as text where the tokenizer has no chat template, joined as :class:`ChatRenderer` joins them."""
    if tokenizer.chat_template is not None or isinstance(records[0]["prompt"], str):
        return list(records)
    return [
        {
            "prompt": "\n\n".join(m["content"] for m in record["prompt"]),
            "completion": "\n\n".join(m["content"] for m in record["completion"]),
        }
        for record in records
    ]


def check_lengths(records: Sequence[Record], tokenizer: Any, max_length: int) -> None:
    """Raises ``UserError`` for the longest record above ``max_length`` tokens: TRL would cut off its end unasked."""
    lengths = [_length(record, tokenizer) for record in records]
    longest = max(range(len(records)), key=lengths.__getitem__)
    if lengths[longest] > max_length:
        over = sum(length > max_length for length in lengths)
        raise UserError(
            f"training record {longest + 1} has {lengths[longest]} tokens, and {over} of {len(records)} have more than "
            f"sft.max_length={max_length}: raise it, or shorten the records"
        )


def _length(record: Mapping[str, Any], tokenizer: Any) -> int:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        return len(tokenizer.encode(prompt + completion)) + 1  # TRL adds the end-of-sequence token
    return len(tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=False))


def _kind(value: Any, where: str) -> Kind:
    if isinstance(value, str) and value:
        return "text"
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    ):
        return "chat"
    raise UserError(f"{where}: expected text, or a list of messages with role and content")
