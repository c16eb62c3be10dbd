"""TRL's preference formats, read as they stand: one record in, a prompt and two answers out.

Three forms, told apart by their types (https://huggingface.co/docs/trl/dataset_formats#preference):

- standard: ``prompt``, ``chosen`` and ``rejected`` are text;
- conversational: all three are lists of ``{"role", "content"}`` messages, the last two of one message each;
- with an implicit prompt: no ``prompt``, which is what ``chosen`` and ``rejected`` begin with in common.

A text prompt beside whole conversations (UltraFeedback) gives way to the conversations' own beginning, as in TRL.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollouts.prompts import PromptError
from rollouts.types import Message

SIDES = ("chosen", "rejected")
# What TRL gives to the chat template or to a vision model. Left out, other text would be trained on than is meant.
_UNSUPPORTED = ("tools", "chat_template_kwargs", "image", "images")
_OTHER_FORMATS = {
    "label": "unpaired data (KTO's form)",
    "labels": "stepwise supervision data",
    "completion": "prompt-completion data",
    "messages": "a language-modelling data set",
    "text": "a language-modelling data set",
}


@dataclass(frozen=True, slots=True)
class Preference:
    """What a record says. ``margin`` is NaN where the record holds no score.

    ``from_text`` says that nothing of it was a chat: ``messages`` is then one user message with the text of the prompt,
    and the answers go on from that text, blank included where there is one.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float
    from_text: bool


def read_preference(record: Mapping[str, Any], where: str) -> Preference:
    """Reads one record; ``where`` (a file and line, say) begins every error, a :class:`PromptError` of one line."""
    fields = {name: value for name, value in record.items() if value is not None}
    _refuse_other_formats(fields, where)
    margin = _margin(fields, where)
    chosen, rejected, prompt = fields["chosen"], fields["rejected"], fields.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            cut = common_beginning(chosen, rejected)
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
            if not prompt:
                raise PromptError(f"{where}: no 'prompt', and chosen and rejected begin with no word in common")
        return Preference(_prompt(prompt, where), chosen, rejected, margin, isinstance(prompt, str))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise PromptError(f"{where}: 'chosen' and 'rejected' must both be text or both be lists of messages")
    ours, theirs = (_messages(fields[side], f"{where}, field {side!r}") for side in SIDES)
    if prompt is None or (isinstance(prompt, str) and len(ours) > 1):
        # The last message of each side stays an answer, even where the two conversations are the same.
        common = _common_messages(ours[:-1], theirs[:-1])
        prompt_messages, ours, theirs = ours[:common], ours[common:], theirs[common:]
        if not prompt_messages:
            raise PromptError(f"{where}: no 'prompt', and chosen and rejected begin with no message in common")
    else:
        prompt_messages = _prompt(prompt, where)
    answers = [_answer(side, messages, where) for side, messages in zip(SIDES, (ours, theirs), strict=True)]
    return Preference(prompt_messages, answers[0], answers[1], margin, from_text=False)


def common_beginning(chosen: str, rejected: str) -> int:
    """Length of the prompt that two texts share: what they have in common, cut back to the start of a word.

    TRL cuts at the first differing character, so that ``It is blue`` and ``It is black`` share the prompt ``It is bl``:
    tokens that no policy would end a prompt with. Here neither answer begins inside a word, a single blank before the
    word goes with the answer (tokenizers keep the two together), and neither answer is empty. The scripts that write no
    blanks between words (Chinese, Japanese) are cut at the character.
    """
    shorter = min(len(chosen), len(rejected))
    cut = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    cut = min(cut, shorter - 1)
    while cut > 0 and (_inside_word(chosen, cut) or _inside_word(rejected, cut)):
        cut -= 1
    return cut - 1 if cut > 0 and chosen[cut - 1] == " " else max(cut, 0)


def _inside_word(text: str, at: int) -> bool:
    """Whether characters ``at - 1`` and ``at`` belong to one word; an accent belongs to what it stands on."""
    if unicodedata.category(text[at]).startswith("M"):
        return True
    return all(c.isalnum() and unicodedata.east_asian_width(c) not in "WF" for c in text[at - 1 : at + 1])


def _common_messages(ours: Sequence[Message], theirs: Sequence[Message]) -> int:
    pairs = list(zip(ours, theirs, strict=False))
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _refuse_other_formats(fields: Mapping[str, Any], where: str) -> None:
    missing = [side for side in SIDES if side not in fields]
    if missing:
        other = next((what for name, what in _OTHER_FORMATS.items() if name in fields), None)
        if other and len(missing) == len(SIDES):
            raise PromptError(f"{where}: this is {other}; preference pairs need the fields 'chosen' and 'rejected'")
        raise PromptError(f"{where}: no field {missing[0]!r} (its fields: {', '.join(map(str, fields)) or 'none'})")
    if unsupported := [name for name in _UNSUPPORTED if fields.get(name)]:
        raise PromptError(f"{where}: the field {unsupported[0]!r} is not supported: leave such records out")


def _prompt(raw: Any, where: str) -> tuple[Message, ...]:
    if isinstance(raw, str) and raw.strip():
        return (Message("user", raw),)
    if isinstance(raw, str):
        raise PromptError(f"{where}: the prompt is empty")
    return _messages(raw, f"{where}, field 'prompt'")


def _messages(raw: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise PromptError(f"{where}: expected text or a list of messages with role and content")
    for message in raw:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise PromptError(f"{where}: expected text or a list of messages with role and content")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise PromptError(f"{where}: the role and the content of a message must be text")
        if message.get("tool_calls"):
            raise PromptError(f"{where}: messages with 'tool_calls' are not supported: leave such records out")
    return tuple(Message(message["role"], message["content"]) for message in raw)


def _answer(side: str, messages: Sequence[Message], where: str) -> str:
    if len(messages) != 1:
        raise PromptError(
            f"{where}: {side!r} holds {len(messages)} messages after the prompt; it may hold one: put all but the last "
            "of them into the prompt, the same for both sides"
        )
    if messages[0].role != "assistant":
        raise PromptError(f"{where}: {side!r} ends with the role {messages[0].role!r}, expected 'assistant'")
    return messages[0].content


def _margin(fields: Mapping[str, Any], where: str) -> float:
    """The record's ``margin``, else the difference of its two scores, else NaN: an unknown margin is no number."""
    scores: dict[str, float] = {}
    for name in ("margin", "score_chosen", "score_rejected"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise PromptError(f"{where}: {name!r} must be a finite number, not {value!r}")
        scores[name] = float(value)
    if "margin" in scores:
        return scores["margin"]
    if len(scores) == 1:
        raise PromptError(f"{where}: {next(iter(scores))!r} alone says nothing: give both scores, or neither")
    return scores["score_chosen"] - scores["score_rejected"] if scores else math.nan
