"""Held-out accuracy by hand: what counts as right, what as failed, and the same random numbers at every step."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from align.evaluate import TextEvaluator
from rewards.intervals import wilson
from rewards.types import Score, ScoreFailure
from rollouts.chat import ChatRenderer
from rollouts.collector import EngineSupervisor
from rollouts.models import load_tokenizer
from rollouts.types import Rollout, WeightUpdate
from tests.rollouts.test_collector import PARAMS, ScriptedEngine, prompts


class Table:
    """Scores by problem, the same for every sample."""

    def __init__(self, scores: list[Score]) -> None:
        self.scores = scores
        self.seen: list[tuple[int, ...]] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        self.seen = [c.token_ids for r in rollouts for c in r.completions]
        return [[score] * len(r.completions) for r, score in zip(rollouts, self.scores, strict=True)]


def evaluator(tiny_model: Path, table: Table, engine: ScriptedEngine, samples: int = 2) -> TextEvaluator:
    renderer = ChatRenderer(load_tokenizer(tiny_model))
    return TextEvaluator(
        EngineSupervisor(engine, ()),
        prompts(len(table.scores)),
        renderer,
        table,
        PARAMS,
        samples_per_prompt=samples,
        threshold=1.0,
        seed=0,
    )


def test_accuracy_counts_full_scores_and_leaves_failures_out(tiny_model: Path) -> None:
    table = Table([1.0, 0.9, 0.0, ScoreFailure("down")])
    one = evaluator(tiny_model, table, ScriptedEngine())
    metrics = one.evaluate(0)
    assert metrics["eval/accuracy"] == pytest.approx(1 / 3)
    assert metrics["eval/failed"] == 2
    assert one.results[0] == [1.0, 0.0, 0.0, None]


def test_the_interval_counts_problems_not_answers(tiny_model: Path) -> None:
    for samples in (1, 5):
        metrics = evaluator(tiny_model, Table([1.0, 0.0, 0.0, 1.0]), ScriptedEngine(), samples).evaluate(0)
        assert (metrics["eval/accuracy_low"], metrics["eval/accuracy_high"]) == wilson(2, 4)


def test_nothing_scored_is_no_accuracy(tiny_model: Path) -> None:
    metrics = evaluator(tiny_model, Table([ScoreFailure("x")] * 2), ScriptedEngine()).evaluate(0)
    assert "eval/accuracy" not in metrics and metrics["eval/failed"] == 4


def test_two_evaluations_differ_by_the_policy_alone(tiny_model: Path) -> None:
    table, engine = Table([1.0] * 3), ScriptedEngine()
    one = evaluator(tiny_model, table, engine)
    one.evaluate(0)
    first = table.seen
    one.evaluate(7)
    assert table.seen == first
    engine.load_weights(WeightUpdate(1, "file:v1"))
    one.evaluate(8)
    assert table.seen != first


def test_results_are_the_state(tiny_model: Path) -> None:
    one = evaluator(tiny_model, Table([1.0, 0.0]), ScriptedEngine())
    one.evaluate(0)
    other = evaluator(tiny_model, Table([1.0, 0.0]), ScriptedEngine())
    other.load_state_dict(one.state_dict())
    assert other.results == {0: [1.0, 0.0]}
