from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from align.protocols import Metrics
from align.tracking.samples import SampleRow, WatchedLabeller, WatchedScorer, sample_rows
from rewards.judged_labeller import JudgedLabeller, JudgeLabelConfig
from rewards.judges import JudgeItem
from rewards.types import Score, ScoredPair, ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


def completion(text: str, origin: Origin = Origin.POLICY) -> Completion:
    return Completion((1, 2), (-0.5, -0.5), text, Finish.STOP, origin, 3)


def rollout(*completions: Completion) -> Rollout:
    prompt = Prompt("p", (Message("system", "be brief"), Message("user", "2 + 2?")))
    return Rollout(prompt, (5, 6), completions)


def pair(of: Rollout, chosen: int, rejected: int) -> ScoredPair:
    return ScoredPair(of.prompt, of.prompt_ids, of.completions[chosen], of.completions[rejected], 1.0, 1.0, 1)


class FixedScorer:
    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        return [[float(item.text == "4") for item in each.completions] for each in rollouts]


class FirstAgainstLast:
    """Labels with its scorer, first completion over last."""

    def __init__(self, scorer: WatchedScorer) -> None:
        self._scorer = scorer
        self.state: dict[str, Any] = {"cursor": 1}

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[Sequence[ScoredPair], Metrics]:
        self._scorer.score(experience)
        return [pair(each, 0, -1) for each in experience], {"label/pairs": float(len(experience))}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_rows_say_what_was_asked_answered_earned_and_became() -> None:
    asked = rollout(completion("4"), completion("5"), completion("5", Origin.REFERENCE))
    rows = sample_rows([asked], [[1.0, ScoreFailure("timeout"), 0.0]], [pair(asked, 0, 2)], limit=1)
    assert rows == [
        SampleRow("2 + 2?", "4", 1.0, "policy", "chosen", 2, "stop", 3),
        SampleRow("2 + 2?", "5", None, "policy", "", 2, "stop", 3),
        SampleRow("2 + 2?", "5", 0.0, "reference", "rejected", 2, "stop", 3),
    ]


def test_equal_completions_do_not_share_a_verdict() -> None:
    asked = rollout(completion("4"), completion("4"), completion("5"))
    rows = sample_rows([asked], [[1.0, 1.0, 0.0]], [pair(asked, 1, 2)], limit=1)
    assert [row.verdict for row in rows] == ["", "chosen", "rejected"]


def test_the_watched_labeller_labels_the_same_and_shows_some_steps() -> None:
    scorer = WatchedScorer(FixedScorer())
    seen: list[list[SampleRow]] = []
    inner = FirstAgainstLast(scorer)
    labeller = WatchedLabeller(inner, scorer, lambda rows: seen.append(list(rows)), every=3, limit=2)
    experience = [rollout(completion("4"), completion("5")) for _ in range(3)]
    for step in range(1, 7):
        pairs, metrics = labeller.label(experience, step)
        assert (len(pairs), metrics) == (3, {"label/pairs": 3.0})
    assert len(seen) == 3  # steps 1, 3 and 6
    assert [(row.reward, row.verdict) for row in seen[0]] == [(1.0, "chosen"), (0.0, "rejected")] * 2
    labeller.load_state_dict({"cursor": 9})
    assert labeller.state_dict() == inner.state == {"cursor": 9}


def test_never_means_never() -> None:
    scorer = WatchedScorer(FixedScorer())
    seen: list[Sequence[SampleRow]] = []
    labeller = WatchedLabeller(FirstAgainstLast(scorer), scorer, seen.append, every=0)
    labeller.label([rollout(completion("4"), completion("5"))], 1)
    assert seen == []


class FirstIsBetter:
    def judge(self, items: Sequence[JudgeItem]) -> list[float | ScoreFailure]:
        return [1.0 if item.first.text < item.second.text else 0.0 for item in items]


def test_a_judges_samples_have_a_verdict_and_no_reward() -> None:
    seen: list[Sequence[SampleRow]] = []
    judged = JudgedLabeller(FirstIsBetter(), JudgeLabelConfig())
    labeller = WatchedLabeller(judged, None, seen.append, every=1)
    theirs = replace(completion("5", Origin.REFERENCE), token_ids=(3, 2))
    labeller.label([rollout(completion("4"), completion("6"), theirs)], 1)
    [rows] = seen
    assert [(row.completion, row.reward, row.verdict) for row in rows] == [
        ("4", None, "chosen"),
        ("6", None, ""),
        ("5", None, "rejected"),
    ]
