"""The data algorithm on hand-made drafts, the scripted source through the same filter, and the policy as a source."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from align.errors import UserError
from align.sft.explore_execute import (
    KEPT,
    Draft,
    Entry,
    PlanRequest,
    PolicyDrafter,
    build_examples,
    drafting_context,
)
from align.sft.scripted import ChainSumExecutor, ChainSumPlanner, steps_in_order
from rewards.adherence import violation
from rewards.verifiers import VerifierScorer, extract_answer
from rollouts.chat import ChatRenderer
from rollouts.engines.base import Request, Sample, SamplingParams
from rollouts.engines.hf_engine import HFEngine
from rollouts.explore_execute import split
from rollouts.models import load_tokenizer
from rollouts.prompts import gym_prompts, question_of
from rollouts.types import Finish, Message, Prompt

SUM = "State the final answer to the following arithmetic problem: {} ="
ONE = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def prompt(expression: str, answer: str | None) -> Prompt:
    return Prompt(expression, (Message("user", SUM.format(expression)),), answer=answer)


class Table:
    """A planner and an executor that look their texts up; ``asked`` is what they were called with."""

    def __init__(self, plans: Sequence[Sequence[Draft]], executions: dict[str, Draft]) -> None:
        self._plans, self._executions = plans, executions
        self.asked: list[list[tuple[str, int]]] = []
        self.executed: list[str] = []

    def plans(self, requests: Sequence[PlanRequest], attempt: int) -> list[list[Draft]]:
        self.asked.append([(r.prompt.id, r.count) for r in requests])
        return [list(self._plans[attempt]) if i == 0 else [] for i in range(len(requests))]

    def executions(self, jobs: Sequence[tuple[Prompt, str]]) -> list[Draft]:
        self.executed += [plan for _, plan in jobs]
        return [self._executions[plan] for _, plan in jobs]


def test_only_what_adheres_and_is_right_is_kept_and_the_ledger_says_why() -> None:
    table = Table(
        plans=[
            [Draft("4 + 3; then + 7"), Draft("4 + 7; then + 3"), Draft("4 + 3; then + 7.")],
            [Draft("add them"), Draft("7 + 3; then +", whole=False), Draft("4 + 3"), Draft("7 + 3; then + 4")],
        ],
        executions={
            "4 + 3; then + 7": Draft("4 + 3 = 7; 7 + 7 = 14. Answer: 14"),
            "4 + 7; then + 3": Draft("4 + 3 = 7; 7 + 7 = 14. Answer: 14"),  # right, but another plan's
            "4 + 3": Draft("4 + 3 = 7. Answer: 7"),  # does what the plan says, and the plan is not enough
            "7 + 3; then + 4": Draft("7 + 3 = 10; 10 + 4", whole=False),
        },
    )
    examples, ledger = build_examples(
        [prompt("4 + 3 + 7", "14"), prompt("4 + 3 + 7", "14")],
        table,
        table,
        VerifierScorer(),
        plans_per_prompt=2,
        attempts=2,
    )
    assert [(e.plan, e.execution) for e in examples] == [("4 + 3; then + 7", "4 + 3 = 7; 7 + 7 = 14. Answer: 14")]
    assert [(e.plan, e.verdict, e.attempt) for e in ledger.entries] == [
        ("4 + 3; then + 7.", "duplicate", 0),
        ("4 + 3; then + 7", KEPT, 0),
        ("4 + 7; then + 3", "deviates", 0),
        ("add them", "vague_step", 1),
        ("7 + 3; then +", "unfinished_plan", 1),
        ("4 + 3", "wrong_answer", 1),
        ("7 + 3; then + 4", "unfinished_execution", 1),
    ]
    # The question comes twice and is planned once; what is missing after the first attempt is one plan.
    assert table.asked == [[("4 + 3 + 7", 2)], [("4 + 3 + 7", 1)]]
    # A plan that is refused is not executed.
    assert table.executed == ["4 + 3; then + 7", "4 + 7; then + 3", "4 + 3", "7 + 3; then + 4"]
    assert ledger.counts() == {
        KEPT: 1, "deviates": 1, "duplicate": 1, "unfinished_execution": 1, "unfinished_plan": 1, "vague_step": 1,
        "wrong_answer": 1,
    }  # fmt: skip


def test_it_stops_as_soon_as_every_question_has_its_examples() -> None:
    table = Table([[Draft("4 + 3")]], {"4 + 3": Draft("4 + 3 = 7. Answer: 7")})
    examples, _ = build_examples([prompt("4 + 3", "7")], table, table, VerifierScorer(), plans_per_prompt=1, attempts=9)
    assert len(examples) == len(table.asked) == 1


def test_an_answer_that_cannot_be_checked_is_not_kept() -> None:
    table = Table([[Draft("4 + 3")]], {"4 + 3": Draft("4 + 3 = 7. Answer: 7")})
    examples, ledger = build_examples(
        [prompt("4 + 3", None)], table, table, VerifierScorer(), plans_per_prompt=1, attempts=1
    )
    assert (examples, ledger.counts()) == ([], {KEPT: 0, "unscored": 1})


def test_the_ledger_is_a_file_of_json_lines(tmp_path: Path) -> None:
    table = Table([[Draft("add")]], {})
    _, ledger = build_examples([prompt("4 + 3", "7")], table, table, VerifierScorer(), plans_per_prompt=1, attempts=1)
    ledger.write(tmp_path / "ledger.jsonl")
    [row] = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert Entry(**row) == ledger.entries[0]
    assert row["execution"] is None


def test_the_scripted_source_passes_its_filter_whole() -> None:
    prompts = gym_prompts("chain_sum", size=100, seed=3, config=ONE | {"max_terms": 4, "allow_negation": True})
    examples, ledger = build_examples(
        prompts, ChainSumPlanner(0), ChainSumExecutor(), VerifierScorer(), plans_per_prompt=2, attempts=1
    )
    assert ledger.counts() == {KEPT: len(examples)}
    assert {question_of(e.prompt) for e in examples} == {question_of(p) for p in prompts}
    for example in examples:
        answer = example.record()["completion"][0]["content"]
        assert split(answer) == (example.plan, example.execution)
        assert extract_answer(answer, example.prompt.answer or "") == example.prompt.answer


def test_scripted_plans_by_hand() -> None:
    planner, executor = ChainSumPlanner(0), ChainSumExecutor()
    first, second = prompt("4 + 3 - 9", "-2"), prompt("4 - -3", "7")
    drafts = planner.plans([PlanRequest(first, 9), PlanRequest(second, 9)], 0)
    # A plan starts with a positive term: 4 or 3, in front of the two others in either order.
    assert {draft.text for draft in drafts[0]} == {
        "4 + 3; then - 9", "4 - 9; then + 3", "3 + 4; then - 9", "3 - 9; then + 4",
    }  # fmt: skip
    assert drafts[0][0].text == "4 + 3; then - 9"
    assert [draft.text for draft in drafts[1]] == ["4 - -3"]
    assert planner.plans([PlanRequest(first, 9)], 1) == [[]]
    jobs = [(first, "3 - 9; then + 4"), (second, "4 - -3")]
    # 3 - 9 = -6, -6 + 4 = -2; 4 - -3 = 7.
    assert executor.executions(jobs) == [Draft("3 - 9 = -6; -6 + 4 = -2. Answer: -2"), Draft("4 - -3 = 7. Answer: 7")]
    assert steps_in_order(first) == "4 + 3 = 7; 7 - 9 = -2. Answer: -2"


def test_the_same_seed_plans_the_same_and_another_seed_otherwise() -> None:
    requests = [PlanRequest(prompt(f"{n} + 2 + 3 + 4", str(n + 9)), 3) for n in range(5, 10)]
    assert ChainSumPlanner(0).plans(requests, 0) == ChainSumPlanner(0).plans(requests, 0)
    assert ChainSumPlanner(0).plans(requests, 0) != ChainSumPlanner(1).plans(requests, 0)


def test_the_script_refuses_what_is_no_sum() -> None:
    with pytest.raises(UserError, match=r"no sum of whole numbers.*data\.source=policy"):
        steps_in_order(Prompt("x", (Message("user", "How many legs has a spider?"),)))


def test_the_policy_drafts_through_any_engine(tiny_model: Path) -> None:
    """The tiny model babbles: everything is refused, each draft with its reason, in the number that was asked for."""
    renderer = ChatRenderer(load_tokenizer(tiny_model))
    prompts = [prompt("4 + 3", "7"), prompt("2 + 5", "7")]
    context = drafting_context(renderer, prompts, 8, 8)
    engine = Recorder(tiny_model, context)
    drafter = PolicyDrafter(
        engine, renderer, SamplingParams(8, renderer.stop_token_ids), max_execution_tokens=8, seed=0
    )
    examples, ledger = build_examples(prompts, drafter, drafter, VerifierScorer(), plans_per_prompt=3, attempts=2)
    assert examples == []
    assert len(ledger.entries) == 2 * 3 * 2
    assert ledger.counts()[KEPT] == 0
    seeds = [seed for requests, _ in engine.calls for r in requests for seed in r.seeds]
    assert len(set(seeds)) == len(seeds) == 12
    assert {params.temperature for _, params in engine.calls} == {1.0}


def test_the_policy_executes_greedily_and_sees_question_and_plan(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    engine = Echo([" Plan: 2 + 5\nthen + 1\n", "Execution: 2 + 5 = 7\n7 + 1 = 8"], tokenizer)
    renderer = ChatRenderer(tokenizer)
    drafter = PolicyDrafter(
        engine, renderer, SamplingParams(64, renderer.stop_token_ids), max_execution_tokens=96, seed=0
    )
    [[plan]] = drafter.plans([PlanRequest(prompt("2 + 5 + 1", "8"), 1)], 0)
    # Lines become steps: one line, no heading.
    assert plan == Draft("2 + 5; then + 1")
    [execution] = drafter.executions([(prompt("2 + 5 + 1", "8"), plan.text)])
    assert execution == Draft("2 + 5 = 7\n7 + 1 = 8")
    asked = [renderer.text(requests[0].prompt_ids) for requests, _ in engine.calls]
    assert SUM.format("2 + 5 + 1") in asked[0] and SUM.format("2 + 5 + 1") in asked[1]
    assert plan.text not in asked[0] and f"Plan: {plan.text}" in asked[1]
    assert [(p.temperature, p.max_new_tokens) for _, p in engine.calls] == [(1.0, 64), (0.0, 96)]
    assert violation(SUM.format("2 + 5 + 1"), plan.text, execution.text) is None


class Recorder:
    """The tiny model's engine, remembering its calls."""

    def __init__(self, model: Path, context: int) -> None:
        self._inner = HFEngine(model, max_context=context)
        self.calls: list[tuple[Sequence[Request], SamplingParams]] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        self.calls.append((requests, params))
        return self._inner.generate(requests, params)


class Echo:
    """Answers call after call with the given texts."""

    def __init__(self, texts: list[str], tokenizer: object) -> None:
        self._texts, self._tokenizer = texts, tokenizer
        self.calls: list[tuple[Sequence[Request], SamplingParams]] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        self.calls.append((requests, params))
        ids = tuple(self._tokenizer.encode(self._texts.pop(0), add_special_tokens=False))  # type: ignore[attr-defined]
        return [[Sample((*ids, 2), (-1.0,) * (len(ids) + 1), Finish.STOP)] for _ in requests]
