"""Pairs: who is set against whom, who wins, and that every rollout is accounted for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.labeller import LabelConfig, PairLabeller
from rewards.types import Score, ScoredPair, ScoreFailure
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


@pytest.mark.parametrize("kind", ["argmax", "bradley_terry", "soft"])
@pytest.mark.parametrize("pairing", ["reference", "best_worst", "both"])
def test_ties_are_won_by_either_side_half_of_the_time(kind: str, pairing: str) -> None:
    tied = rollout(0, 10, 11, 12)
    wins = coins = 0
    for seed in range(1000):
        made, metrics = label([[0.5, 0.5, 0.5]], [tied], label=kind, pairing=pairing, ties="random", seed=seed)
        assert metrics["label/tie_rate"] == 1
        wins += sum(chosen == "10" for chosen, _ in made)
        coins += len(made)
    # "10" is a policy sample, and stands in every pair. Its wins are binomial(coins, 1/2): 5 standard deviations.
    assert coins == (2000 if pairing == "both" else 1000)
    assert abs(wins - coins / 2) < 5 * math.sqrt(coins) / 2


@given(
    st.lists(st.sampled_from([0.0, 0.4, 0.5, 1.0]), min_size=2, max_size=2),
    st.sampled_from(["argmax", "bradley_terry", "soft"]),
    st.integers(0, 99),
)
def test_where_a_sample_comes_from_never_decides_who_wins(scores: list[float], kind: str, seed: int) -> None:
    config = {"label": kind, "pairing": "best_worst", "ties": "random", "seed": seed}
    row: list[Score] = [*scores]
    made = [label([row], [rollout(0, 10, 11, origins=marks)], **config)[0] for marks in ("pr", "rp", "pp")]
    assert made[0] == made[1] == made[2]
    if kind != "bradley_terry" and scores[0] != scores[1]:
        turned, _ = label([row[::-1]], [rollout(0, 11, 10)], **config)
        assert turned == made[0]


def test_bradley_terry_wins_as_often_as_it_says() -> None:
    rollouts = [rollout(i, 10, 11) for i in range(2000)]
    made, _ = label([[1.0, 0.0]] * 2000, rollouts, label="bradley_terry", temperature=2.0)
    wins = sum(pair == ("10", "11") for pair in made) / 2000
    assert wins == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.05)


def pairs_of(first: float, second: float, **config: Any) -> list[ScoredPair]:
    return PairLabeller(Table([[first, second]]), LabelConfig(**config)).label([rollout(0, 10, 11)], 1)[0]


def test_a_drawn_label_is_hard_and_tells_its_probability() -> None:
    # sigmoid((2 - 0) / 2) = 1 / (1 + e^-1)
    better = 1 / (1 + math.exp(-1.0))
    drawn = [pairs_of(2.0, 0.0, label="bradley_terry", temperature=2.0, seed=seed)[0] for seed in range(40)]
    seen = {(p.chosen.text, p.margin, round(p.probability, 12), p.target) for p in drawn}
    assert seen == {("10", 2.0, round(better, 12), 1.0), ("11", -2.0, round(1 - better, 12), 1.0)}


@pytest.mark.parametrize(("first", "second", "winner"), [(2.0, 0.0, "10"), (0.0, 2.0, "11")])
def test_a_soft_label_chooses_the_more_probable_side_and_gives_the_loss_its_probability(
    first: float, second: float, winner: str
) -> None:
    [pair] = pairs_of(first, second, label="soft", temperature=2.0)
    assert (pair.chosen.text, pair.margin) == (winner, 2.0)
    assert pair.probability == pair.target == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_an_argmax_label_is_certain_and_a_coin_is_not() -> None:
    [hard] = pairs_of(1.0, 0.0)
    assert (hard.probability, hard.target) == (1.0, 1.0)
    # The coin's result is a hard label, except for soft, where both sides weigh the same in the loss.
    for kind, target in (("argmax", 1.0), ("bradley_terry", 1.0), ("soft", 0.5)):
        [coin] = pairs_of(1.0, 1.0, ties="random", label=kind)
        assert (coin.probability, coin.target, coin.margin) == (0.5, target, 0.0)


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(1e-3, 1e3))
def test_soft_targets_stay_between_a_half_and_one(first: float, second: float, temperature: float) -> None:
    [pair] = pairs_of(first, second, label="soft", temperature=temperature, ties="random")
    assert 0.5 <= pair.target <= 1
    assert pair.margin == abs(first - second)


def test_scores_within_the_tolerance_are_a_tie() -> None:
    assert [len(pairs_of(0.5, 0.75, tie_tolerance=t)) for t in (0.0, 0.125, 0.25, 0.5)] == [1, 1, 0, 0]
    # The coin ignores a difference that does not count: both sides win, and neither is more probable.
    coins = [pairs_of(0.5, 0.75, tie_tolerance=0.25, ties="random", label="soft", seed=s)[0] for s in range(40)]
    assert {(p.chosen.text, p.target) for p in coins} == {("10", 0.5), ("11", 0.5)}


@pytest.mark.parametrize("ties", ["drop", "random"])
def test_the_tie_rate_counts_ties_among_judged_pairs_whatever_becomes_of_them(ties: str) -> None:
    scores: list[list[Score]] = [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [math.nan, 1.0]]
    rollouts = [*(rollout(i, 10, 11) for i in range(4)), rollout(4, 10, 10), rollout(5, 10, 11)]
    made, metrics = label(scores, rollouts, ties=ties)
    # Four pairs can be judged, two of them are ties; one is identical and one has a score missing.
    assert metrics["label/tie_rate"] == 0.5
    assert metrics["label/pairs"] == len(made) == (2 if ties == "drop" else 4)
    assert metrics["label/ties"] == (2 if ties == "drop" else 0)
    assert "label/tie_rate" not in label([[1.0, 0.0]], [rollout(0, 10, 10)])[1]


def test_the_mean_probability_is_told_where_it_means_something() -> None:
    scores: list[list[Score]] = [[1.0, 0.0], [0.0, 3.0]]
    rollouts = [rollout(0, 10, 11), rollout(1, 10, 11)]
    _, soft = label(scores, rollouts, label="soft")
    assert soft["label/probability"] == pytest.approx((1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-3))) / 2)
    assert soft["label/margin"] == 2.0
    assert "label/probability" not in label(scores, rollouts)[1]


def test_equal_text_in_other_tokens_is_not_identical() -> None:
    same = rollout(0, 10, 11)
    twins = tuple(replace(c, text="4") for c in same.completions)
    _, metrics = label([[1.0, 1.0]], [replace(same, completions=twins)])
    assert (metrics["label/identical"], metrics["label/ties"]) == (0, 1)


def test_a_score_that_is_no_number_stays_out_of_the_means() -> None:
    _, metrics = label([[1.0, math.nan, 0.0]], [rollout(0, 10, 11, 12)])
    assert (metrics["reward/mean"], metrics["reward/std"]) == (1.0, 0.0)


@pytest.mark.parametrize("config", [{"temperature": 0.0}, {"tie_tolerance": -0.1}, {"tie_tolerance": math.nan}])
def test_settings_without_a_meaning_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        LabelConfig(**config)  # type: ignore[arg-type]


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
