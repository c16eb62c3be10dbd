"""What is taken out of texts before a policy discriminator reads them: thoughts, and literals of control tokens."""

import re
from collections.abc import Iterable
from typing import Final

THOUGHT_TAGS: Final = ("<think>", "</think>")


def strip_thoughts(text: str) -> str:
    """The answer alone, without a reasoning model's thoughts.

    - ``<think>…</think>`` goes, wherever it stands;
    - what is left up to the last ``</think>`` goes: chat templates often write the opening tag into the prompt;
    - what is left from a ``<think>`` on goes: a thought cut short is not an answer.

    Where something goes, the rest loses the white space around it, as in POLAR's own reward function. A text without
    either tag stays as it is.
    """
    opening, closing = THOUGHT_TAGS
    if opening not in text and closing not in text:
        return text
    kept: list[str] = []
    start = 0
    while (opened := text.find(opening, start)) >= 0 and (closed := text.find(closing, opened)) >= 0:
        kept.append(text[start:opened])
        start = closed + len(closing)
    rest = "".join([*kept, text[start:]])
    return rest.rpartition(closing)[2].partition(opening)[0].strip()


class Literals:
    """Strings that may not stand in a text; :meth:`remove_from` takes them out until none is left."""

    def __init__(self, literals: Iterable[str]) -> None:
        longest_first = sorted(
            {literal for literal in literals if literal}, key=lambda literal: (-len(literal), literal)
        )
        self._by_end: dict[str, list[str]] = {}
        for literal in longest_first:
            self._by_end.setdefault(literal[-1], []).append(literal)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._reach = len(longest_first[0])

    def remove_from(self, text: str, before: str = "") -> str:
        """``text`` without the literals, nor with one that begins in ``before``, which itself stays as it is.

        Taking one out may put another together (``<|rew<|reward|>ard|>``): each is taken out where it ends, and what is
        kept never holds one, so that one pass in linear time is enough.
        """
        seam = before[-self._reach :]
        if not self._pattern.search(seam + text):
            return text
        kept = list(seam)
        for character in text:
            kept.append(character)
            ends = self._by_end.get(character)
            if ends:
                tail = "".join(kept[-self._reach :])
                found = next((literal for literal in ends if tail.endswith(literal)), None)
                if found is not None:
                    del kept[max(len(seam), len(kept) - len(found)) :]
        return "".join(kept[len(seam) :])
