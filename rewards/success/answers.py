"""Yes and no in a tokenizer's vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.success.errors import SuccessError


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The ids of all single tokens that mean yes, and of those that mean no."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    def log_odds(self, logits: Tensor) -> Tensor:
        """``log P(yes) - log P(no)`` [B], in nats, of next-token logits [B, V]: all variants of an answer together."""
        scores = logits.float()
        return torch.logsumexp(scores[:, list(self.yes)], 1) - torch.logsumexp(scores[:, list(self.no)], 1)


def answer_tokens(tokenizer: Any, yes: Sequence[str], no: Sequence[str]) -> AnswerTokens:
    """The variants among ``yes`` and ``no`` that are one token each, special and unknown ones excepted.

    A first piece of a longer word would not do: other words begin with it too. Raises :class:`SuccessError` where
    an answer has no such token, or both share one.
    """
    found = AnswerTokens(_single(tokenizer, yes), _single(tokenizer, no))
    for words, ids in ((yes, found.yes), (no, found.no)):
        if not ids:
            raise SuccessError(f"the tokenizer has none of {list(words)} as a single token; use another model, or name "
                               "answers that are single tokens")  # fmt: skip
    if set(found.yes) & set(found.no):
        raise SuccessError(f"the answers {list(yes)} and {list(no)} share a token; name answers that differ")
    return found


def _single(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    barred = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1 and ids[0] not in barred))
