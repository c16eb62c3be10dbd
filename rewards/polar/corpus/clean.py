"""Cleaning of samples (appendix D.1.1): loops are shortened and never dropped, and no end tells where a text was cut.

The paper names both rules without numbers; the exact forms here are ours.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rewards.polar.corpus.config import LoopConfig, Mode
from rollouts.types import Finish

Dropped = Literal["empty", "unfinished"]

# A full stop ends a sentence before a blank or at the end of the text; the wide forms need no blank behind them.
_SENTENCE_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]}*_`]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*"
)
_FENCE = re.compile(r"(?:^|\n)[ \t]*```[ \t]*$")
_LIST_MARK = re.compile(r"[ \t]*(?:\d{1,3}|[A-Za-z])[.]")
_CUT_CHARACTER = "\ufffd"  # half of a character, where the last token was not its last


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A sample fit to be stored."""

    text: str
    looped: bool = False
    trimmed: bool = False


def clean(text: str, finish: Finish, mode: Mode, loops: LoopConfig) -> Cleaned | Dropped:
    """``text`` with its loop shortened and its incomplete end trimmed, or why nothing of it can be kept.

    The end is trimmed to the last end of a sentence or line, also where the policy itself stopped: an end could
    otherwise tell "cut" from "stopped". A text without any such end is kept whole if the policy stopped there, since an
    answer of one word is complete, and is ``unfinished`` if it was cut. The end of a shortened loop is its last whole
    repetition. Blanks go from the end, and from the beginning of an answer; those of a continuation join it to its
    prefix.
    """
    text = text.rstrip(_CUT_CHARACTER).rstrip()
    if mode == "chat":
        text = text.lstrip()
    if not text.strip():
        return "empty"
    shorter = shorten_loop(text, loops)
    if shorter != text:
        return Cleaned(shorter, looped=True)
    end = last_complete_end(text)
    if end == len(text):
        return Cleaned(text)
    trimmed = text[:end].rstrip()
    if trimmed.strip():
        return Cleaned(trimmed, trimmed=True)
    return Cleaned(text) if finish is Finish.STOP else "unfinished"


def shorten_loop(text: str, loops: LoopConfig) -> str:
    """``text`` with ``loops.keep`` repetitions of the unit that fills its end, or unchanged where none does."""
    while True:
        found = _loop(text, loops)
        if found is None:
            return text
        start, period = found
        text = text[: start + loops.keep * period].rstrip()


def last_complete_end(text: str) -> int:
    """Where the last whole sentence or line of ``text`` ends: its length where nothing is incomplete, 0 without one.

    The stop of a list's number ("2.") ends no sentence. A closing code fence is an end like a stop.
    """
    if _FENCE.search(text):
        return len(text)
    line = text.rfind("\n") + 1
    for match in reversed(list(_SENTENCE_END.finditer(text, line))):
        if not _LIST_MARK.fullmatch(text, line, match.end()):
            return match.end()
    return line


def _loop(text: str, loops: LoopConfig) -> tuple[int, int] | None:
    """Start and period of the loop at the end of ``text``; the shortest period wins."""
    for period in range(1, min(loops.max_period, len(text) // loops.min_repeats) + 1):
        start = len(text) - period
        while start > 0 and text[start - 1] == text[start - 1 + period]:
            start -= 1
        span = len(text) - start
        if span >= loops.min_repeats * period and span >= loops.min_chars:
            return start, period
    return None


def count_cleaning(results: Sequence[Cleaned | Dropped], ledger: Counter[str]) -> None:
    """Adds to ``ledger`` what became of the samples: ``samples``, ``loops``, ``trimmed``, ``empty``, ``unfinished``."""
    for result in results:
        ledger["samples"] += 1
        if isinstance(result, Cleaned):
            ledger["loops"] += result.looped
            ledger["trimmed"] += result.trimmed
        else:
            ledger[result] += 1
