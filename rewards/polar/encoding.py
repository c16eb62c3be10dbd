"""The one encoder of policy discriminators: training, scoring and serving read exactly the same tokens."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rewards.polar.cleaning import THOUGHT_TAGS, Literals, strip_thoughts
from rewards.polar.types import PolarError, Triple, Turns, Wrapper

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SEPARATOR: Final = "<|reward|>"
SCORE_TOKEN: Final = "[UNUSED_TOKEN_130]"
_TEMPLATE_TOKENS: Final = 4  # the separator, the score token and two line breaks

Part = Literal["prompt", "reference", "output"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one candidate, the score token last; ``truncated`` says which of its parts lost text to fit."""

    ids: tuple[int, ...]
    truncated: frozenset[Part]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text of ``tokens`` tokens; ``whole`` where nothing was cut off."""

    text: str
    tokens: int
    whole: bool


class PolarEncoder:
    """Renders prompt ``P``, reference ``R`` and candidate ``O`` as POLAR's released models read them, and tokenises.

    ``sft``: ``P + "\\n" + R + separator + P + "\\n" + O + score_token``; ``pretrain`` is the same without line breaks.
    An empty ``R`` or ``O`` drops the line break before it, as in the public training code (InternLM/xtuner,
    ``tokenize_ref``; the public client keeps it). Messages are joined by line breaks and their roles dropped.

    - Tokens are those of the rendered text, so that a server given the text sees the same: a beginning-of-sequence
      token where the tokenizer adds one, no end-of-sequence token, one separator, one score token, which is the last.
    - Literals of special tokens (the separator, the score token and every token the tokenizer marks as special) are
      taken out of ``P``, ``R`` and ``O`` until none is left, also where the template would join two halves. Added
      tokens that are not special are text, and stay. A text of nothing else is an empty text.
    - ``strip_thinking`` takes the thoughts out of each message of reference and candidate:
      :func:`rewards.polar.cleaning.strip_thoughts`.
    - Responses keep their first ``max_response_length`` tokens each, the prompt its last
      ``(max_length - 4 - BOS - |R| - max |O|) // 2``: the same prompt for every candidate of a group, or candidates
      would be judged on different questions. Texts are cut between characters; what is not cut stays byte for byte.
      A sequence never exceeds ``max_length`` tokens.

    Raises :class:`PolarError` when the tokenizer is not a fast one, lacks a token, or adds an end-of-sequence token;
    when the responses leave no room for the prompt; and when a text is not valid Unicode. Calls from several threads
    are safe.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int = 16384,
        max_response_length: int = 4096,
        separator: str = SEPARATOR,
        score_token: str = SCORE_TOKEN,
        strip_thinking: bool = True,
    ) -> None:
        if max_length <= _TEMPLATE_TOKENS:
            raise PolarError(f"max_length must be above {_TEMPLATE_TOKENS}, the tokens of the template: {max_length}")
        if max_response_length < 1:
            raise PolarError(f"max_response_length must be at least 1, not {max_response_length}")
        self._core = _own_core(tokenizer)
        self._template = _template_ids(self._core, separator, score_token)
        self.max_length = max_length
        self.max_response_length = max_response_length
        self._separator, self._score_token = separator, score_token
        self._strip_thinking = strip_thinking
        special = {token.content for token in self._core.get_added_tokens_decoder().values() if token.special}
        special |= {*tokenizer.all_special_tokens, separator, score_token}
        self._control = {self._core.token_to_id(literal) for literal in special} - {None, tokenizer.unk_token_id}
        self._in_prompts = Literals(special)
        # A tag that only removals put together holds no thought: it goes like a special token.
        self._in_responses = Literals([*special, *THOUGHT_TAGS]) if strip_thinking else self._in_prompts

    @property
    def separator_id(self) -> int:
        """The token between the two halves."""
        return self._template[-2]

    @property
    def score_id(self) -> int:
        """The last token, where the score is read."""
        return self._template[-1]

    def encode(self, prompt: Turns, reference: Turns, candidate: Turns, wrapper: Wrapper = "sft") -> list[int]:
        """The tokens of one candidate by itself."""
        return list(self.encode_group(prompt, reference, [candidate], wrapper)[0].ids)

    def encode_group(
        self, prompt: Turns, reference: Turns, candidates: Sequence[Turns], wrapper: Wrapper = "sft"
    ) -> list[Encoded]:
        """The tokens of each of the ``candidates``, in order, with one and the same prompt and reference."""
        return [encoded for _, encoded in self._fit(prompt, reference, candidates, wrapper)]

    def encode_triple(self, triple: Triple) -> tuple[Encoded, Encoded]:
        """The chosen and the rejected candidate, as a group of two."""
        candidates = [triple.chosen, triple.rejected]
        chosen, rejected = self.encode_group(triple.prompt, triple.reference, candidates, triple.wrapper)
        return chosen, rejected

    def render(self, prompt: Turns, reference: Turns, candidate: Turns, wrapper: Wrapper = "sft") -> str:
        """The text whose tokens are those of :meth:`encode`, for servers that take text."""
        return self._fit(prompt, reference, [candidate], wrapper)[0][0]

    def encode_rendered(self, text: str) -> Encoded:
        """The tokens of a text that :meth:`render` or POLAR's own client has made; nothing of it is cut or cleaned.

        Raises :class:`PolarError` when its control tokens are not those of one item, or it exceeds ``max_length``.
        """
        ids: list[int] = self._core.encode(_joined(text), add_special_tokens=True).ids
        if [token for token in ids if token in self._control] != self._template or ids[-1] != self.score_id:
            raise PolarError(
                f"a rendered text holds '{self._separator}' once, '{self._score_token}' once at its end, and no other "
                "special token"
            )
        if len(ids) > self.max_length:
            raise PolarError(f"the rendered text has {len(ids)} tokens, and max_length is {self.max_length}")
        return Encoded(tuple(ids), frozenset())

    def _fit(
        self, prompt: Turns, reference: Turns, candidates: Sequence[Turns], wrapper: Wrapper
    ) -> list[tuple[str, Encoded]]:
        """Text and tokens of each candidate, with the longest end of the prompt that fits all of them."""
        if not candidates:
            return []
        joint = "\n" if wrapper == "sft" else ""
        question = self._in_prompts.remove_from(_joined(prompt))
        answer, *outputs = [self._response(turns, question + joint) for turns in (reference, *candidates)]
        size = len(self._spans(question))
        taken = answer.tokens + max(output.tokens for output in outputs)
        room = (self.max_length - _TEMPLATE_TOKENS - len(self._template[:-2]) - taken) // 2
        while True:
            if room < 0 or (room == 0 and question):
                raise self._no_room(size, answer, outputs, room)
            kept = self._cut(question, room, "end")
            if question and not kept.text:  # not even one character of the prompt fits
                raise self._no_room(size, answer, outputs, room)
            texts = [self._rendered(kept.text, joint, answer.text, output.text) for output in outputs]
            rows = [encoding.ids for encoding in self._core.encode_batch(texts, add_special_tokens=True)]
            # Parts may tokenise to more tokens together than apart.
            over = max(map(len, rows)) - self.max_length
            if over <= 0:
                break
            room = min(room, kept.tokens) - (over + 1) // 2
        return [
            (text, Encoded(self._checked(ids), _truncated(kept, answer, output)))
            for text, ids, output in zip(texts, rows, outputs, strict=True)
        ]

    def _response(self, turns: Turns, before: str) -> _Cut:
        text = _joined(turns, strip_thoughts if self._strip_thinking else None)
        return self._cut(self._in_responses.remove_from(text, before), self.max_response_length, "start")

    def _rendered(self, prompt: str, joint: str, reference: str, output: str) -> str:
        first, second = (prompt + (joint if text else "") + text for text in (reference, output))
        return first + self._separator + second + self._score_token

    def _cut(self, text: str, limit: int, keep: Literal["start", "end"]) -> _Cut:
        """At most ``limit`` tokens of ``text``, cut between two characters."""
        spans = self._spans(text)
        if len(spans) <= limit:
            return _Cut(text, len(spans), whole=True)
        room = limit
        while room > 0:
            # A token that holds a piece of a character has the span of the whole of it.
            end = min(spans[room][0], spans[room - 1][1])
            kept = text[:end] if keep == "start" else text[spans[-room - 1][1] :]
            tokens = len(self._spans(kept))
            if tokens <= limit:  # a part may tokenise to more tokens than it had in the whole
                return _Cut(kept, tokens, whole=False)
            room -= tokens - limit
        return _Cut("", 0, whole=False)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of ``text`` stands in it, in characters."""
        spans: list[tuple[int, int]] = self._core.encode(text, add_special_tokens=False).offsets
        return spans

    def _checked(self, ids: list[int]) -> tuple[int, ...]:
        control = [token for token in ids if token in self._control]
        if control != self._template or ids[-1] != self.score_id:
            raise PolarError(
                f"the text makes control tokens {control} instead of {self._template}: this tokenizer sees special "
                "tokens in other spellings; add the two POLAR tokens with normalized=False"
            )
        return tuple(ids)

    def _no_room(self, prompt_tokens: int, answer: _Cut, outputs: Sequence[_Cut], room: int) -> PolarError:
        longest = max(output.tokens for output in outputs)
        return PolarError(
            f"max_length {self.max_length} leaves {max(room, 0)} of the prompt's {prompt_tokens} tokens beside a "
            f"reference of {answer.tokens} and a candidate of {longest}; raise max_length, or lower "
            f"max_response_length ({self.max_response_length})"
        )


def _joined(turns: Turns, clean: Callable[[str], str] | None = None) -> str:
    contents = [turns] if isinstance(turns, str) else [message.content for message in turns]
    text = "\n".join(contents if clean is None else map(clean, contents))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PolarError(
            f"a text holds half of a surrogate pair, {text[error.start]!a}, and is not valid Unicode; mend the data"
        ) from error
    return text


def _truncated(prompt: _Cut, reference: _Cut, output: _Cut) -> frozenset[Part]:
    parts: dict[Part, _Cut] = {"prompt": prompt, "reference": reference, "output": output}
    return frozenset(part for part, cut in parts.items() if not cut.whole)


def _own_core(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """A copy: padding or truncation that others set on the tokenizer must not reach the encoder."""
    if not getattr(tokenizer, "is_fast", False):
        raise PolarError(
            f"POLAR needs a fast tokenizer, not {type(tokenizer).__name__}; 'align polar convert' makes one from an "
            "official checkpoint"
        )
    core: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = False
    return core


def _template_ids(core: "Tokenizer", separator: str, score_token: str) -> list[int]:
    """The control tokens of every sequence: beginning of sequence where there is one, separator, score token."""
    for role, token in (("separator", separator), ("score token", score_token)):
        if core.token_to_id(token) is None:
            raise PolarError(
                f"the tokenizer has no {role} '{token}'; run 'align polar convert' on an official checkpoint, or "
                "'build_polar' on another model"
            )
    body = [core.token_to_id(separator), core.token_to_id(score_token)]
    ids: list[int] = core.encode(separator + score_token, add_special_tokens=True).ids
    if ids[-2:] == body and len(ids) <= 3:
        return ids
    if core.encode(separator + score_token, add_special_tokens=False).ids == body:
        raise PolarError(
            f"the tokenizer puts special tokens {ids} around a text, and POLAR wants at most one before it; "
            "set add_eos_token to false in tokenizer_config.json"
        )
    raise PolarError(
        f"the tokenizer splits '{separator}' or '{score_token}' into several tokens; run 'align polar convert' or "
        "'build_polar', which add them as special tokens"
    )
