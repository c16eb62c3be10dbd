"""Judges that see both completions of a pair at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rewards.callables import Form, NamedFunction, completion_form, prompt_columns, prompt_form
from rewards.checks import checked_preference
from rewards.endpoint import Endpoint, EndpointConfig
from rewards.errors import RewardError
from rewards.types import ScoreFailure
from rollouts.types import Completion, Prompt

Preference = float
"""Probability in [0, 1] that the first of two completions is the better one; 1/2 is a tie."""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """Two completions of one prompt."""

    prompt: Prompt
    first: Completion
    second: Completion


@runtime_checkable
class PairJudge(Protocol):
    """Compares the completions of pairs."""

    def judge(self, items: Sequence[JudgeItem]) -> list[Preference | ScoreFailure]:
        """``result[i]`` belongs to ``items[i]``; same length, always. No answer is a failure, never a number."""
        ...


class BothOrders:
    """Asks ``judge`` for (first, second) and for (second, first), and averages ``p`` and ``1 - p'``.

    A judge that likes what stands first gives both orders the same advantage, and it cancels. Costs twice the items;
    a pair fails when either order does.
    """

    def __init__(self, judge: PairJudge) -> None:
        self._judge = judge

    def judge(self, items: Sequence[JudgeItem]) -> list[Preference | ScoreFailure]:
        swapped = [JudgeItem(item.prompt, item.second, item.first) for item in items]
        answers = self._judge.judge([*items, *swapped])
        if len(answers) != 2 * len(items):
            raise ValueError(f"the judge gave {len(answers)} answers for {2 * len(items)} items")
        return [_both(p, q) for p, q in zip(answers[: len(items)], answers[len(items) :], strict=True)]


class CallableJudge:
    """A Python function as a judge; ``function`` is a callable or ``package.module:function``.

    Two signatures, told apart by their names:

    - ``fn(prompt, first, second, **fields) -> float``, called once for each pair;
    - ``fn(prompts, firsts, seconds, **fields) -> list[float]``, called once with lists of all.

    Prompts and completions look as ``form`` says (:data:`rewards.callables.Form`): ``str | list[dict]`` and ``str`` by
    default. ``fields`` are ``reference``, ``answer`` and the prompt's metadata, those that the function names or, with
    ``**fields``, all. The result is the probability that the first is better, 1/2 for a tie, None for no answer.

    None, NaN, a number outside [0, 1] and what is no number become failures of that pair alone; an exception, or a list
    of another length, is a :class:`rewards.errors.RewardError` that names the function.
    """

    def __init__(self, function: str | Callable[..., Any], form: Form = "text") -> None:
        self._function = NamedFunction(function, "judge")
        self._form: Form = form
        self._takes_lists = {"prompts", "firsts", "seconds"} <= self._function.takes
        if not self._takes_lists and not self._function.takes_any and not {"first", "second"} <= self._function.takes:
            raise RewardError(
                f"{self._function.name} must take prompt, first and second, or lists named prompts, firsts and seconds"
            )

    def judge(self, items: Sequence[JudgeItem]) -> list[Preference | ScoreFailure]:
        if not items:
            return []
        prompts = [prompt_form(item.prompt, self._form) for item in items]
        firsts = [completion_form(item.first, self._form) for item in items]
        seconds = [completion_form(item.second, self._form) for item in items]
        fields = prompt_columns([item.prompt for item in items])
        if self._takes_lists:
            lists = fields | {"prompts": prompts, "firsts": firsts, "seconds": seconds}
            values = self._function.call_for_list(len(items), **lists)
        else:
            columns = fields | {"prompt": prompts, "first": firsts, "second": seconds}
            values = [self._function(**{k: column[i] for k, column in columns.items()}) for i in range(len(items))]
        return [checked_preference(value, self._function.name) for value in values]


class RemoteJudge:
    """Asks an endpoint which completion is better.

    ``POST url`` with ``{"items": [{"prompt", "first", "second"}]}`` answers ``{"items": [{"probability": 0.7} or
    {"error": "why not"}]}``, as many and in the same order. ``prompt`` is text where it is one user message, else a
    list of ``{"role", "content"}``; ``probability`` is that of the first being better. What is no number in [0, 1]
    becomes a failure of its item; errors of the whole endpoint are those of :class:`rewards.endpoint.Endpoint`.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self._endpoint = Endpoint(config, sleep)

    def judge(self, items: Sequence[JudgeItem]) -> list[Preference | ScoreFailure]:
        asked = [
            {"prompt": prompt_form(item.prompt), "first": item.first.text, "second": item.second.text} for item in items
        ]
        return self._endpoint.numbers(asked, "probability", checked_preference)

    def close(self) -> None:
        """Gives the connections back."""
        self._endpoint.close()


def _both(p: Preference | ScoreFailure, q: Preference | ScoreFailure) -> Preference | ScoreFailure:
    if isinstance(p, ScoreFailure):
        return p
    if isinstance(q, ScoreFailure):
        return q
    # Exactly 1/2 where both orders gave the same advantage to a place.
    return 0.5 + (p - q) / 2
