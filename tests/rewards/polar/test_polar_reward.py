"""POLAR as a reward: references found and combined, failures kept apart, raw scores told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rewards.errors import RewardError
from rewards.polar.reward import PolarReward, plain_scores, references_of
from rewards.polar.types import PolarItem
from rewards.types import Score, ScoreFailure, Scorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

MISSING = ScoreFailure("the prompt has no reference")
LOST = ScoreFailure("lost")


@dataclass(frozen=True)
class Scored:
    score: Score
    truncated: frozenset[str] = frozenset()
    cached_tokens: int = 0


@dataclass(frozen=True)
class Counted(Scored):
    tokens: int = 10


class Recorder:
    """Scores by a table of (reference, output); the length of the output where it has no entry."""

    def __init__(self, table: dict[tuple[str, str], Scored] | None = None) -> None:
        self.table = table or {}
        self.items: list[PolarItem] = []

    def __call__(self, items: Sequence[PolarItem]) -> list[Scored]:
        self.items += items
        return [self.table.get((str(i.reference), str(i.output)), Scored(float(len(i.output)))) for i in items]


def rollout(*texts: str, reference: str | None = "r", **metadata: Any) -> Rollout:
    messages = (Message("system", "s"), Message("user", "q"))
    completions = tuple(Completion((1,), (), text, Finish.STOP, Origin.POLICY, 0) for text in texts)
    return Rollout(Prompt("p", messages, reference=reference, metadata=metadata), (1,), completions)


def test_each_completion_is_set_against_each_reference() -> None:
    seen = Recorder()
    reward = PolarReward(seen)
    assert isinstance(reward, Scorer)
    assert reward.score([rollout("a", "bb", references=["s"]), rollout(), rollout("ccc")]) == [[1.0, 2.0], [], [3.0]]
    messages = (Message("system", "s"), Message("user", "q"))
    expected = [("r", "a"), ("r", "bb"), ("s", "a"), ("s", "bb"), ("r", "ccc")]
    assert seen.items == [PolarItem(messages, reference, output) for reference, output in expected]


@pytest.mark.parametrize(("combine", "expected"), [("mean", [-2.0, -5.0, LOST]), ("max", [-1.0, -5.0, LOST])])
def test_references_are_combined_over_those_that_have_a_score(combine: Any, expected: list[Score]) -> None:
    table = {
        ("r", "a"): Scored(-1.0), ("s", "a"): Scored(-3.0),
        ("r", "b"): Scored(LOST), ("s", "b"): Scored(-5.0),
        ("r", "c"): Scored(LOST), ("s", "c"): Scored(ScoreFailure("later")),
    }  # fmt: skip
    reward = PolarReward(Recorder(table), combine=combine)
    assert reward.score([rollout("a", "b", "c", references=["s"])]) == [expected]


def test_what_is_no_finite_number_fails() -> None:
    table = {("r", "a"): Scored(math.nan), ("r", "b"): Scored(-math.inf)}
    reasons = [ScoreFailure(f"the score is {x}, not a finite number") for x in ("nan", "-inf")]
    assert PolarReward(Recorder(table)).score([rollout("a", "b")]) == [reasons]


def test_a_prompt_without_references_fails_and_costs_nothing() -> None:
    seen = Recorder()
    reward = PolarReward(seen)
    assert reward.score([rollout("a", "b", reference=None), rollout("c", reference=" ")]) == [[MISSING] * 2, [MISSING]]
    assert seen.items == []
    assert reward.last_metrics() == {"reward/failed": 3.0}


def test_references_of_a_prompt() -> None:
    assert references_of(rollout(references=["s", "r", "", "t"]).prompt) == ["r", "s", "t"]
    assert references_of(rollout(reference=None, references=("s",)).prompt) == ["s"]
    assert references_of(rollout(references="s").prompt) == ["r"]
    assert references_of(rollout(references=[{"text": "s"}]).prompt) == ["r"]


def test_scores_are_normalised_and_the_metrics_raw() -> None:
    table = {("r", "x"): Scored(LOST, frozenset({"output"})), ("r", "bb"): Scored(-4.0, frozenset({"prompt"}))}
    reward = PolarReward(Recorder(table), normalise="group")
    assert reward.last_metrics() == {}
    assert reward.score([rollout("aa", "bb", "x"), rollout("c")]) == [[1.0, -1.0, LOST], [0.0]]
    # Raw: 2, -4 and 1; mean -1/3, variance (49 + 121 + 16) / 27.
    assert reward.last_metrics() == {
        "reward/raw_mean": pytest.approx(-1 / 3),
        "reward/raw_std": pytest.approx(math.sqrt(186 / 27)),
        "reward/raw_min": -4.0,
        "reward/raw_max": 2.0,
        "reward/failed": 1.0,
        "reward/truncated_fraction": 0.5,
    }


def test_the_share_of_cached_tokens_is_told_where_it_is_known() -> None:
    table: dict[tuple[str, str], Scored] = {
        ("r", "a"): Counted(1.0, cached_tokens=0, tokens=10),
        ("r", "b"): Counted(1.0, cached_tokens=6, tokens=10),
    }
    reward = PolarReward(Recorder(table))
    reward.score([rollout("a", "b")])
    assert reward.last_metrics()["reward/cached_token_fraction"] == 0.3


def test_running_statistics_survive_a_checkpoint() -> None:
    first, second = (PolarReward(Recorder(), normalise="running") for _ in range(2))
    assert first.score([rollout("a", "bbb")]) == [[-1.0, 1.0]]
    second.load_state_dict(first.state_dict())
    assert second.score([rollout("bb")]) == first.score([rollout("bb")]) == [[0.0]]


def test_a_scorer_that_loses_items_is_caught() -> None:
    with pytest.raises(RewardError, match="1 scores for 2 items"):
        PolarReward(lambda items: [Scored(1.0)]).score([rollout("a", "b")])


@pytest.mark.parametrize("setting", [{"combine": "min"}, {"normalise": "batch"}])
def test_settings_without_a_meaning_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=f"{next(iter(setting))} '{next(iter(setting.values()))}' is unknown"):
        PolarReward(Recorder(), **setting)


def test_plain_scores_leave_the_rest_out() -> None:
    assert plain_scores(Recorder({("r", "a"): Scored(LOST)}))([PolarItem("", "r", "a"), PolarItem("", "r", "bb")]) == [
        LOST,
        2.0,
    ]
