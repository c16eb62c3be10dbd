"""Pairs: who is set against whom, who wins, and that every rollout is accounted for."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.labeller import LabelConfig, PairLabeller
from rewards.types import Score, ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


class Table:
    """Scores that a test wrote down."""

    def __init__(self, scores: list[list[Score]]) -> None:
        self._scores = scores

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        return self._scores


def rollout(i: int, *tokens: int, origins: str = "") -> Rollout:
    """``origins``: r for the reference policy, anything else for the policy; the last is the reference by default."""
    marks = origins or "p" * (len(tokens) - 1) + "r"
    return Rollout(
        Prompt(f"p{i}", (Message("user", "q"),)),
        (1, 2),
        tuple(
            Completion((t, 2), (), str(t), Finish.STOP, Origin.REFERENCE if m == "r" else Origin.POLICY, 0)
            for t, m in zip(tokens, marks, strict=True)
        ),
    )


def label(
    scores: list[list[Score]], rollouts: list[Rollout], **config: Any
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    pairs, metrics = PairLabeller(Table(scores), LabelConfig(**config)).label(rollouts, step=1)
    return [(p.chosen.text, p.rejected.text) for p in pairs], metrics


def test_the_reference_is_set_against_the_sample_that_differs_most() -> None:
    # wrong reference: a right policy sample wins; right reference: a wrong policy sample loses.
    made, metrics = label([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], [rollout(0, 10, 11, 12), rollout(1, 20, 21, 22)])
    assert made == [("11", "12"), ("22", "21")]
    assert metrics["label/margin"] == 1.0


def test_best_against_worst_of_all() -> None:
    made, _ = label([[0.3, 0.9, 0.1, 0.5]], [rollout(0, 10, 11, 12, 13)], pairing="best_worst")
    assert made == [("11", "12")]


def test_both_makes_the_reference_pair_and_one_of_the_policys_own() -> None:
    made, metrics = label(
        [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], [rollout(0, 10, 11, 12), rollout(1, 20, 21, 22)], pairing="both"
    )
    assert made == [("11", "12"), ("11", "10"), ("20", "22")]
    assert (metrics["label/pairs"], metrics["label/ties"]) == (3, 1)


def test_every_rollout_ends_in_one_column() -> None:
    scores: list[list[Score]] = [
        [1.0, 0.0],
        [0.0, 0.0],
        [1.0, 0.0],
        [ScoreFailure("down"), 1.0],
        [math.nan, 1.0],
    ]
    rollouts = [rollout(0, 10, 11), rollout(1, 10, 11), rollout(2, 10, 10), rollout(3, 10, 11), rollout(4, 10, 11)]
    made, metrics = label(scores, rollouts)
    assert made == [("10", "11")]
    ends = {k: metrics[f"label/{k}"] for k in ("pairs", "ties", "identical", "failed")}
    assert ends == {"pairs": 1, "ties": 1, "identical": 1, "failed": 2}


def test_ties_broken_at_random_favour_no_side() -> None:
    rollouts = [rollout(i, 10, 11) for i in range(400)]
    made, metrics = label([[0.5, 0.5]] * 400, rollouts, ties="random")
    assert metrics["label/pairs"] == 400
    assert 140 < sum(pair == ("10", "11") for pair in made) < 260  # 6 standard deviations


def test_bradley_terry_wins_as_often_as_it_says() -> None:
    rollouts = [rollout(i, 10, 11) for i in range(2000)]
    made, _ = label([[1.0, 0.0]] * 2000, rollouts, label="bradley_terry", temperature=2.0)
    wins = sum(pair == ("10", "11") for pair in made) / 2000
    assert wins == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.05)


def test_bradley_terry_reports_its_probability_and_argmax_is_certain() -> None:
    soft, _ = PairLabeller(Table([[1.0, 0.0]]), LabelConfig(label="bradley_terry")).label([rollout(0, 10, 11)], 1)
    expected = 1 / (1 + math.exp(-1.0))
    assert soft[0].probability == pytest.approx(expected if soft[0].margin > 0 else 1 - expected)
    hard, _ = PairLabeller(Table([[1.0, 0.0]]), LabelConfig()).label([rollout(0, 10, 11)], 1)
    assert hard[0].probability == 1.0


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=1, max_size=12))
def test_argmax_never_prefers_the_lower_score(scores: list[list[float]]) -> None:
    rollouts = [rollout(i, 10, 11, 12) for i in range(len(scores))]
    for pairing in ("reference", "best_worst"):
        labeller = PairLabeller(Table([list(row) for row in scores]), LabelConfig(pairing=pairing))  # type: ignore[arg-type]
        pairs, metrics = labeller.label(rollouts, 1)
        assert all(p.margin > 0 for p in pairs)
        assert sum(metrics[f"label/{end}"] for end in ("pairs", "ties", "identical", "failed")) == len(scores)
        if pairing == "reference":
            assert all(Origin.REFERENCE in (p.chosen.origin, p.rejected.origin) for p in pairs)


def test_reward_means_keep_policy_and_reference_apart() -> None:
    _, metrics = label([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [rollout(0, 10, 11, 12), rollout(1, 10, 11, 12)])
    assert metrics["reward/mean"] == 0.25
    assert metrics["reward/reference_mean"] == 0.5
    assert metrics["reward/frac_zero_std"] == 0.5


def test_a_scorer_that_loses_items_is_caught() -> None:
    with pytest.raises(ValueError, match="1 scores for 2 completions"):
        label([[1.0]], [rollout(0, 10, 11)])


def test_labels_depend_on_seed_and_step_alone() -> None:
    rollouts = [rollout(i, 10, 11) for i in range(50)]
    config = {"label": "bradley_terry", "seed": 5}
    assert label([[1.0, 0.0]] * 50, rollouts, **config) == label([[1.0, 0.0]] * 50, rollouts, **config)
    assert label([[1.0, 0.0]] * 50, rollouts, **config) != label([[1.0, 0.0]] * 50, rollouts, **{**config, "seed": 6})
