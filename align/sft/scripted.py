"""A planner and an executor for ``chain_sum`` that are programs: the seed data of an explore-execute warm start.

A small model seldom plans well unasked, and cannot be filtered into it when it never does. The two write what the
policy is to imitate; they go through the same filter as any other source.
"""

import random
import re
from collections.abc import Sequence
from itertools import islice, permutations

from align.errors import UserError
from align.sft.explore_execute import Draft, PlanRequest
from rollouts.prompts import question_of
from rollouts.types import Prompt

_SUM = re.compile(r"-?\d+(?: [-+] -?\d+)+(?= =\s*$)")
_OPERATOR = re.compile(r" ([-+]) ")
MAX_ORDERS = 720  # of six terms; enough to choose from, and a sum of twelve has half a billion


class ChainSumPlanner:
    """Plans that add the terms of a sum in an order: as they stand, or any other that starts with an added term."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def plans(self, requests: Sequence[PlanRequest], attempt: int) -> list[list[Draft]]:
        """All that are wanted at the first attempt, fewer where a sum has fewer orders; none afterwards."""
        return [self._plans(request) if attempt == 0 else [] for request in requests]

    def _plans(self, request: PlanRequest) -> list[Draft]:
        terms = _terms(request.prompt)
        orders = list(islice(permutations(terms), MAX_ORDERS))
        random.Random(f"{self._seed}:{question_of(request.prompt)}").shuffle(orders)
        # The order as it stands is the one that comes to mind, and every problem has it.
        plans = dict.fromkeys(_plan(order) for order in [tuple(terms), *orders] if order[0][0] == "+")
        return [Draft(plan) for plan in islice(plans, request.count)]


class ChainSumExecutor:
    """Carries out a plan of :class:`ChainSumPlanner` step by step."""

    def executions(self, jobs: Sequence[tuple[Prompt, str]]) -> list[Draft]:
        return [Draft(_execution(plan)) for _, plan in jobs]


def steps_in_order(prompt: Prompt) -> str:
    """The sum written out from left to right: ``4 + 3 = 7; 7 - 5 = 2. Answer: 2``."""
    return _execution(_plan(_terms(prompt)))


def _terms(prompt: Prompt) -> list[tuple[str, int]]:
    """Operator and number of each term, the first one's operator a plus."""
    question = question_of(prompt)
    found = _SUM.search(question)
    if found is None:
        raise UserError(
            f"prompt {prompt.id!r} is no sum of whole numbers: the scripted source knows chain_sum only; "
            "use data.source=policy, or data.answers=reference"
        )
    first, *rest = _OPERATOR.split(found.group())
    return [("+", int(first)), *((sign, int(number)) for sign, number in zip(rest[::2], rest[1::2], strict=True))]


def _plan(order: Sequence[tuple[str, int]]) -> str:
    """The first two terms, then one more at a time."""
    (_, first), (sign, second), *rest = order
    return "; ".join([f"{first} {sign} {second}", *(f"then {sign} {number}" for sign, number in rest)])


def _execution(plan: str) -> str:
    equations: list[str] = []
    result: int | None = None
    for step in plan.split("; "):
        left = step if result is None else f"{result} {step.removeprefix('then ')}"
        first, *rest = _OPERATOR.split(left)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        result = int(first) + sum(int(number) if sign == "+" else -int(number) for sign, number in pairs)
        equations.append(f"{left} = {result}")
    return f"{'; '.join(equations)}. Answer: {result}"
