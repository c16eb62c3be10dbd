"""Scores from a Python function in TRL's form."""

from collections.abc import Callable, Sequence
from typing import Any

from rewards.callables import Form, NamedFunction, completion_form, prompt_columns, prompt_form
from rewards.checks import checked_score
from rewards.types import Score
from rollouts.types import Rollout


class CallableScorer:
    """Scores with ``fn(prompts, completions, **columns) -> list[float | None]``; implements :class:`Scorer`.

    The form is that of TRL's ``reward_funcs``. One call for all ``N`` completions of all rollouts, every argument a
    list of ``N``: ``prompts`` and ``completions`` (:data:`rewards.callables.Form`), ``completion_ids`` the tokens, and
    the columns of :func:`rewards.callables.prompt_columns`. A function without ``**kwargs`` gets those it names. TRL's
    trainer objects (``trainer_state``, ``log_extra``, ``log_metric``) are not passed.

    ``function`` is a callable or ``package.module:function``. None, NaN, infinity and what is no number become failures
    of that item alone; an exception, or a list of another length, is a :class:`rewards.errors.RewardError` that names
    the function.
    """

    def __init__(self, function: str | Callable[..., Any], form: Form = "text") -> None:
        self._function = NamedFunction(function, "reward function")
        self._form: Form = form

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        flat = [(rollout.prompt, completion) for rollout in rollouts for completion in rollout.completions]
        if not flat:
            return [[] for _ in rollouts]
        columns = prompt_columns([prompt for prompt, _ in flat]) | {
            "prompts": [prompt_form(prompt, self._form) for prompt, _ in flat],
            "completions": [completion_form(completion, self._form) for _, completion in flat],
            "completion_ids": [list(completion.token_ids) for _, completion in flat],
        }
        values = self._function.call_for_list(len(flat), **columns)
        scores = iter([checked_score(value, self._function.name) for value in values])
        return [[next(scores) for _ in rollout.completions] for rollout in rollouts]
