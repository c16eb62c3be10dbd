"""From preference records to scored pairs: rendered, tokenised, and counted where they are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from rewards.preference_records import Preference, read_preference
from rewards.types import ScoredPair
from rollouts.chat import ChatRenderer
from rollouts.prompts import PromptError, question_of
from rollouts.types import Completion, Finish, Origin, Prompt

Located = tuple[str, Mapping[str, Any]]
"""Where a record stands (``file:line``, or ``source, record 3``), and its fields."""

LEDGER = ("pairs", "too_long", "identical", "heldout")


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How records become pairs.

    ``text`` says what a record without chat messages is: ``chat`` makes its prompt a user's message and its answers the
    assistant's, as prompts of text are asked everywhere else here (the blank that joins an answer to its prompt goes);
    ``raw`` takes text and answers as one text without a template or a system prompt, as TRL does. Conversations always
    go through the template.

    ``max_tokens`` bounds prompt plus longer answer. Longer pairs are left out, never cut: a cut answer has no end, and
    would teach not to stop.
    """

    text: Literal["chat", "raw"] = "chat"
    max_tokens: int | None = None


class PairReader:
    """Makes a pair of each record, or says why not: ``too_long``, ``identical`` answers, or a ``heldout`` question.

    Answers carry ``Origin.DATASET``, no log-probabilities and policy version 0; the pairs' step is 0. A pair's
    ``probability`` is 1, its ``margin`` the record's, and NaN where the record has none.
    """

    def __init__(self, renderer: ChatRenderer, config: ReadConfig, exclude: frozenset[str] = frozenset()) -> None:
        self._renderer = renderer
        self._config = config
        self.exclude = exclude

    def pair(self, located: Located) -> ScoredPair | str:
        """The pair of a record. Raises :class:`rollouts.prompts.PromptError`, one line that begins with the place."""
        where, fields = located
        preference = read_preference(fields, where)
        prompt = Prompt(where, preference.messages)
        if question_of(prompt) in self.exclude:
            return "heldout"
        try:
            prompt_ids, sides = self._render(prompt, preference)
        except TemplateError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PromptError(f"{where}: the model's chat template refuses it: {reason}") from error
        chosen, rejected = sides
        if chosen.token_ids == rejected.token_ids:
            return "identical"
        longest = len(prompt_ids) + max(len(chosen.token_ids), len(rejected.token_ids))
        if self._config.max_tokens is not None and longest > self._config.max_tokens:
            return "too_long"
        return ScoredPair(prompt, prompt_ids, chosen, rejected, preference.margin, probability=1.0, step=0)

    def _render(self, prompt: Prompt, preference: Preference) -> tuple[tuple[int, ...], tuple[Completion, Completion]]:
        renderer, answers = self._renderer, (preference.chosen, preference.rejected)
        if preference.from_text and self._config.text == "raw":
            renderer = renderer.plain()
        elif preference.from_text and renderer.templated:
            answers = (answers[0].removeprefix(" "), answers[1].removeprefix(" "))
        prompt_ids = renderer.prompt_ids(prompt)
        chosen, rejected = (_completion(renderer, prompt, prompt_ids, answer) for answer in answers)
        return prompt_ids, (chosen, rejected)


class PreferenceSet(Sequence[ScoredPair]):
    """The pairs of records that can be read in any order.

    All records are read once at the start, so that every mistake shows before anything is trained; what is kept is
    their numbers, and a pair is rendered again when it is asked for. ``ledger`` counts the records by what became of
    them. Raises :class:`rollouts.prompts.PromptError` where no pair is left.
    """

    def __init__(self, records: Sequence[Located], reader: PairReader, source: str) -> None:
        self._records = records
        self._reader = reader
        self.ledger = dict.fromkeys(LEDGER, 0)
        self._kept: list[int] = []
        for index in range(len(records)):
            made = reader.pair(records[index])
            self.ledger[made if isinstance(made, str) else "pairs"] += 1
            if not isinstance(made, str):
                self._kept.append(index)
        check_not_empty(self.ledger, source)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = self._reader.pair(self._records[self._kept[index]])
        assert not isinstance(pair, str), "a record that was kept is a pair"
        return pair


def check_not_empty(ledger: Mapping[str, int], source: str) -> None:
    """Raises :class:`PromptError` when a whole data set gave no pair, and says where its records went."""
    if ledger["pairs"]:
        return
    gone = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ledger.items() if count)
    raise PromptError(f"{source} holds no preference pairs" + (f" that can be used ({gone})" if gone else ""))


def _completion(renderer: ChatRenderer, prompt: Prompt, prompt_ids: Sequence[int], answer: str) -> Completion:
    ids = renderer.completion_ids(prompt, prompt_ids, answer)
    return Completion(ids, (), renderer.text(ids), Finish.STOP, Origin.DATASET, policy_version=0)
