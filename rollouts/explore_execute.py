"""Explore-Execute answers: a short plan in one line, then its execution, and how to decode the two.

The idea is that of "Explore-Execute Chain" (arXiv 2509.23946): one model writes both parts,
p(plan, execution | question) = p(plan | question) p(execution | plan, question); the plan is sampled, the execution
deterministic. Ours are the plain headings in place of tags (fewer tokens in a small vocabulary, and the last number
stays the answer), and that a line break ends the plan.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.types import WeightUpdate

PLAN, EXECUTION = "Plan:", "Execution:"
_ANSWER = re.compile(rf"\s*{PLAN}[ \t]*(?P<plan>[^\n]*)\n\s*{EXECUTION}[ \t]*(?P<execution>.*)\Z", re.DOTALL)


def compose(plan: str, execution: str) -> str:
    """The answer with this plan and this execution. Raises ``ValueError`` for a plan of several lines."""
    if "\n" in plan:
        raise ValueError(f"a plan is one line, not {plan!r}")
    return f"{PLAN} {plan}\n{EXECUTION} {execution}"


def split(answer: str) -> tuple[str, str] | None:
    """Plan and execution of an answer, or None where it has another form; the inverse of :func:`compose`."""
    found = _ANSWER.match(answer)
    return (found["plan"].strip(), found["execution"].strip()) if found else None


def line_end_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every token of the vocabulary that holds a line break.

    All of them, because a tokenizer may join the break with what stands before or after it.
    """
    ids = range(len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return tuple(i for i, text in zip(ids, texts, strict=True) if "\n" in text)


def plan_then_execute(
    engine: Engine,
    requests: Sequence[Request],
    params: SamplingParams,
    *,
    plan_end_ids: Sequence[int],
    max_plan_tokens: int,
) -> list[list[Sample]]:
    """Answers whose first part is sampled as ``params`` say, and whose rest is greedy; result as ``Engine.generate``.

    A token of ``plan_end_ids`` ends the plan, and so do ``max_plan_tokens`` without one; the execution takes at most
    ``params.max_new_tokens - max_plan_tokens``. It continues the sampled tokens themselves, never their text. An answer
    that ends within its plan is returned as it is. Log-probabilities are the engine's: of the plan under the sampling
    distribution, of the execution at temperature 1. Raises ``ValueError`` when the plan leaves no token to execute.
    """
    if not 0 < max_plan_tokens < params.max_new_tokens:
        raise ValueError(
            f"max_plan_tokens must be between 1 and max_new_tokens - 1 ({params.max_new_tokens - 1}), "
            f"not {max_plan_tokens}"
        )
    stops = tuple(dict.fromkeys((*params.stop_token_ids, *plan_end_ids)))
    # min_new_tokens would forbid the end of the plan too, and is about the whole answer.
    exploring = replace(params, max_new_tokens=max_plan_tokens, stop_token_ids=stops, min_new_tokens=0)
    executing = replace(
        params,
        max_new_tokens=params.max_new_tokens - max_plan_tokens,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_new_tokens=0,
    )
    plans = engine.generate(requests, exploring)
    open_ends = {
        request.prompt_ids + plan.token_ids
        for request, samples in zip(requests, plans, strict=True)
        for plan in samples
        if not _ended(plan, params)
    }
    # Greedy continuations of the same tokens are the same, and are made once.
    begun = sorted(open_ends)
    continued = engine.generate([Request(ids, (0,)) for ids in begun], executing) if begun else []
    executions = {ids: samples[0] for ids, samples in zip(begun, continued, strict=True)}
    return [
        [_joined(plan, executions.get(request.prompt_ids + plan.token_ids)) for plan in samples]
        for request, samples in zip(requests, plans, strict=True)
    ]


def _ended(plan: Sample, params: SamplingParams) -> bool:
    return bool(plan.token_ids) and plan.token_ids[-1] in params.stop_token_ids


def _joined(plan: Sample, execution: Sample | None) -> Sample:
    if execution is None:
        return plan
    return Sample(plan.token_ids + execution.token_ids, plan.logprobs + execution.logprobs, execution.finish)


class ExploreExecuteEngine:
    """An :class:`rollouts.engines.base.Engine` that answers by :func:`plan_then_execute`; all else is the inner one's.

    Evaluators and collectors take it where they take an engine.
    """

    def __init__(self, engine: Engine, *, plan_end_ids: Sequence[int], max_plan_tokens: int) -> None:
        self._engine = engine
        self._plan_end_ids = tuple(plan_end_ids)
        self._max_plan_tokens = max_plan_tokens

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        return plan_then_execute(
            self._engine,
            requests,
            params,
            plan_end_ids=self._plan_end_ids,
            max_plan_tokens=self._max_plan_tokens,
        )

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        return self._engine.logprobs(sequences)

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        return self._engine.load_weights(update)

    def version(self) -> int:
        return self._engine.version()

    def max_context(self) -> int:
        return self._engine.max_context()

    def rebuild(self) -> None:
        self._engine.rebuild()

    def close(self) -> None:
        self._engine.close()
