"""Pairs from a judge: who is compared, in which order, and what its probability becomes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.judged_labeller import JudgedLabeller, JudgeLabelConfig, log_odds
from rewards.judges import JudgeItem
from rewards.types import ScoredPair, ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


class Rule:
    """A judge that a test wrote down; remembers what it was asked."""

    def __init__(self, rule: Callable[[str, str], float | ScoreFailure]) -> None:
        self._rule = rule
        self.asked: list[tuple[str, str]] = []

    def judge(self, items: Sequence[JudgeItem]) -> list[float | ScoreFailure]:
        self.asked += [(item.first.text, item.second.text) for item in items]
        return [self._rule(item.first.text, item.second.text) for item in items]


def rollout(*texts: str, origins: str = "", i: int = 0) -> Rollout:
    """``origins``: r for the reference policy, p for the policy; the last is the reference by default."""
    marks = origins or "p" * (len(texts) - 1) + "r"
    return Rollout(
        Prompt(f"p{i}", (Message("user", "q"),)),
        (1, 2),
        tuple(
            Completion((*t.encode(), 2), (), t.strip(), Finish.STOP, Origin.REFERENCE if m == "r" else Origin.POLICY, 0)
            for t, m in zip(texts, marks, strict=True)
        ),
    )


def longer(p: float) -> Callable[[str, str], float]:
    """The longer text is better with probability ``p``; equal lengths are a tie."""
    return lambda first, second: 0.5 if len(first) == len(second) else p if len(first) > len(second) else 1 - p


def label(
    rule: Callable[[str, str], float | ScoreFailure], rollouts: Sequence[Rollout], **config: Any
) -> tuple[list[ScoredPair], dict[str, float]]:
    return JudgedLabeller(Rule(rule), JudgeLabelConfig(**config)).label(rollouts, step=1)


def sides(pairs: Sequence[ScoredPair]) -> list[tuple[str, str]]:
    return [(p.chosen.text, p.rejected.text) for p in pairs]


def test_the_first_policy_sample_is_judged_against_the_reference() -> None:
    made, metrics = label(longer(0.9), [rollout("aa", "aaaa", "aaa"), rollout("bbb", "b", "bb")])
    assert sides(made) == [("aaa", "aa"), ("bbb", "bb")]
    assert metrics["label/pairs"] == 2


def test_each_policy_sample_is_judged_against_the_reference() -> None:
    made, _ = label(longer(0.9), [rollout("aa", "aaaa", "aaa")], pairing="each_reference")
    assert sides(made) == [("aaa", "aa"), ("aaaa", "aaa")]


def test_two_of_all_samples_are_drawn_evenly() -> None:
    drawn = [label(longer(0.9), [rollout("a", "aa", "aaa")], pairing="random", seed=s)[0] for s in range(600)]
    counts = [sides([pair for [pair] in drawn]).count(pair) for pair in [("aa", "a"), ("aaa", "a"), ("aaa", "aa")]]
    # Binomial(600, 1/3): mean 200, standard deviation 11.5; within 5 of them.
    assert sum(counts) == 600 and all(142 < count < 258 for count in counts)


def test_every_pair_ends_in_one_column() -> None:
    def rule(first: str, second: str) -> float | ScoreFailure:
        return ScoreFailure("down") if "x" in first + second else longer(0.9)(first, second)

    rollouts = [
        rollout("aa", "a"),
        rollout("b", "a"),
        rollout("a", "a"),
        rollout("x", "a"),
        rollout("a", "aa", origins="pp"),
        rollout("a", origins="r"),
    ]
    made, metrics = label(rule, rollouts)
    assert sides(made) == [("aa", "a")]
    ends = {k: metrics[f"label/{k}"] for k in ("pairs", "ties", "identical", "failed")}
    assert ends == {"pairs": 1, "ties": 1, "identical": 1, "failed": 3}
    assert metrics["label/tie_rate"] == 0.5


@pytest.mark.parametrize(("kind", "probability", "target"), [("argmax", 1.0, 1.0), ("soft", 0.75, 0.75)])
def test_the_more_probable_side_is_chosen(kind: str, probability: float, target: float) -> None:
    made, metrics = label(longer(0.75), [rollout("aa", "a"), rollout("a", "aa")], label=kind)
    assert sides(made) == [("aa", "a"), ("aa", "a")]
    assert {(p.probability, p.target) for p in made} == {(probability, target)}
    # log(0.75 / 0.25) = log 3
    assert metrics["label/margin"] == pytest.approx(math.log(3))
    assert metrics.get("label/probability") == (0.75 if kind == "soft" else None)


def test_a_draw_follows_the_judges_probability_and_is_a_hard_label() -> None:
    made, _ = label(longer(0.75), [rollout("aa", "a", i=i) for i in range(2000)], label="bradley_terry")
    # Binomial(2000, 0.75): standard deviation 19.4; within 5 of them.
    assert abs(sum(p.chosen.text == "aa" for p in made) - 1500) < 97
    assert {(p.chosen.text, p.probability, p.target) for p in made} == {("aa", 0.75, 1.0), ("a", 0.25, 1.0)}
    assert all(p.margin == pytest.approx(math.log(3) * (1 if p.chosen.text == "aa" else -1)) for p in made)


def test_margins_are_log_odds_clipped_at_twenty_nats() -> None:
    assert log_odds(0.5) == 0
    assert log_odds(0.2) == pytest.approx(-math.log(4))
    assert [log_odds(p) for p in (0.0, 1e-300, 1 - 2**-53, 1.0)] == [-20, -20, 20, 20]
    [pair], _ = label(longer(1.0), [rollout("aa", "a")], label="soft")
    assert (pair.margin, pair.target) == (20, 1)


@given(st.floats(0, 1))
def test_the_margin_has_the_sign_of_the_preference(p: float) -> None:
    assert (log_odds(p) > 0) == (p > 0.5) and (log_odds(p) < 0) == (p < 0.5)


def test_a_probability_near_a_half_is_a_tie_where_the_tolerance_says_so() -> None:
    counts = [len(label(longer(0.625), [rollout("aa", "a")], tie_tolerance=t)[0]) for t in (0.0, 0.1, 0.125, 0.2)]
    assert counts == [1, 1, 0, 0]


def test_liking_the_first_place_favours_no_policy() -> None:
    rollouts = [rollout("a", "b", i=i) for i in range(1000)]
    made, _ = label(lambda first, second: 0.9, rollouts)
    # A coin decides who stands first: binomial(1000, 1/2), standard deviation 15.8; within 5 of them.
    assert abs(sum(p.chosen.origin is Origin.POLICY for p in made) - 500) < 79


def test_liking_the_first_place_cancels_in_both_orders() -> None:
    made, metrics = label(lambda first, second: 0.9, [rollout("a", "b")], both_orders=True)
    assert (made, metrics["label/ties"]) == ([], 1)


def test_ties_broken_at_random_favour_no_side() -> None:
    made, metrics = label(lambda first, second: 0.5, [rollout("a", "b", i=i) for i in range(1000)], ties="random")
    assert metrics["label/tie_rate"] == 1
    assert abs(sum(p.chosen.origin is Origin.POLICY for p in made) - 500) < 79


def test_equal_text_is_a_tie_that_nobody_is_asked_about() -> None:
    judge = Rule(lambda first, second: 0.9)
    # Other tokens, the same text: the judge would have to guess.
    _, metrics = JudgedLabeller(judge, JudgeLabelConfig()).label([rollout("a ", "a")], 1)
    assert (judge.asked, metrics["label/ties"], metrics["label/identical"]) == ([], 1, 0)


@pytest.mark.parametrize("answer", [math.nan, -0.1, 1.5, math.inf, "yes"])
def test_what_is_no_probability_becomes_no_label(answer: Any) -> None:
    made, metrics = label(lambda first, second: answer, [rollout("aa", "a")])
    assert (made, metrics["label/failed"]) == ([], 1)


@pytest.mark.parametrize("both_orders", [False, True])
def test_a_judge_that_loses_items_is_caught(both_orders: bool) -> None:
    class Lossy:
        def judge(self, items: Sequence[JudgeItem]) -> list[float | ScoreFailure]:
            return [0.9 for _ in items[1:]]

    with pytest.raises(ValueError, match="gave"):
        JudgedLabeller(Lossy(), JudgeLabelConfig(both_orders=both_orders)).label([rollout("aa", "a")], 1)


def test_labels_depend_on_seed_and_step_alone() -> None:
    rollouts = [rollout("aa", "a", i=i) for i in range(50)]
    config = {"label": "bradley_terry", "seed": 5}
    assert sides(label(longer(0.75), rollouts, **config)[0]) == sides(label(longer(0.75), rollouts, **config)[0])
    assert sides(label(longer(0.75), rollouts, **config)[0]) != sides(
        label(longer(0.75), rollouts, **{**config, "seed": 6})[0]
    )


def test_the_state_is_the_ledger() -> None:
    one, other = (JudgedLabeller(Rule(longer(0.9)), JudgeLabelConfig()) for _ in range(2))
    one.label([rollout("aa", "a"), rollout("a", "a")], 1)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == {"ledger": {"pairs": 1, "ties": 0, "identical": 1, "failed": 0}}


def test_a_tolerance_that_swallows_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="tie_tolerance"):
        JudgeLabelConfig(tie_tolerance=0.5)
