"""A check beside the reward: what it measures, and that it never touches the scores."""

from collections.abc import Sequence
from typing import Any

import pytest

from rewards.checked_scorer import CheckedScorer
from rewards.types import MeteredScorer, Score, ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


class Fixed:
    def __init__(self, scores: list[list[Score]]) -> None:
        self.scores = scores

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        return self.scores


class Metered(Fixed):
    state = 3

    def last_metrics(self) -> dict[str, float]:
        return {"reward/raw_mean": -2.0}

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


def rollout(*origins: Origin) -> Rollout:
    completions = tuple(Completion((i,), (0.0,), str(i), Finish.STOP, o, 0) for i, o in enumerate(origins))
    return Rollout(Prompt("p", (Message("user", "q"),)), (1,), completions)


POLICY, REFERENCE = Origin.POLICY, Origin.REFERENCE


def test_right_and_wrong_are_compared_within_a_prompt_and_scores_pass_unchanged() -> None:
    rollouts = [rollout(POLICY, POLICY, POLICY), rollout(POLICY, POLICY, REFERENCE)]
    scores: list[list[Score]] = [[3.0, 1.0, 3.0], [-9.0, 5.0, 7.0]]
    # First prompt: right 3, wrong 1 and 3: one pair won, one tied. Second: right -9 against wrong 5: lost; the
    # reference policy's sample takes no part.
    checked = CheckedScorer(Fixed(scores), Fixed([[1.0, 0.0, 0.5], [1.0, 0.0, 1.0]]), threshold=1.0)
    assert checked.score(rollouts) == scores
    assert checked.last_metrics() == {
        "reward/verified_mean": pytest.approx(2 / 5),
        "reward/verified_auc": pytest.approx(1.5 / 3),
    }


def test_failures_are_left_out_and_no_comparison_is_no_number() -> None:
    rollouts = [rollout(POLICY, POLICY)]
    failed = ScoreFailure("down")
    checked = CheckedScorer(Fixed([[failed, 1.0]]), Fixed([[1.0, 0.0]]), threshold=1.0)
    checked.score(rollouts)
    assert checked.last_metrics() == {"reward/verified_mean": 0.5}
    checked = CheckedScorer(Fixed([[1.0, 1.0]]), Fixed([[failed, failed]]), threshold=1.0)
    checked.score(rollouts)
    assert checked.last_metrics() == {}


def test_the_scorers_own_numbers_and_state_are_kept() -> None:
    inner = Metered([[1.0]])
    checked = CheckedScorer(inner, Fixed([[1.0]]), threshold=1.0)
    assert isinstance(checked, MeteredScorer)
    checked.score([rollout(POLICY)])
    assert checked.last_metrics() == {"reward/raw_mean": -2.0, "reward/verified_mean": 1.0}
    assert checked.state_dict() == {"state": 3}
    checked.load_state_dict({"state": 5})
    assert inner.state == 5
    plain = CheckedScorer(Fixed([[1.0]]), Fixed([[1.0]]), threshold=1.0)
    plain.load_state_dict(plain.state_dict())
