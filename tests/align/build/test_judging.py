"""Who judges a run: what is learnt from, what only checks it, and a reward model that comes back when it fails."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from align.build.judging import Judging, Supervised
from align.recipe.load import load
from rewards.checked_scorer import CheckedScorer
from rewards.polar.reward import PolarReward
from rewards.polar.types import PolarError
from rewards.types import MeteredScorer
from rollouts.engines.base import EngineError
from rollouts.engines.recovery import RETRIES
from tests.tiny import build_tiny_classifier

SMOKE = Path(__file__).resolve().parents[3] / "recipes" / "smoke" / "xpo_tiny.yaml"


class Part:
    """Fails as often as it is told to, then scores."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.rebuilt = 0

    def score_items(self, items: Sequence[Any]) -> list[float]:
        if self.failures:
            raise self.failures.pop(0)
        return [float(len(items))]

    def rebuild(self) -> None:
        self.rebuilt += 1


class Gone(Exception):
    """As a host reports a process that died; the next call starts it anew."""


def test_an_engine_that_failed_is_rebuilt_and_asked_again() -> None:
    part = Part(EngineError("lost"))
    assert Supervised(part, (Gone,)).score_items([1, 2]) == [2.0]
    assert part.rebuilt == 1


def test_a_process_that_died_is_only_asked_again() -> None:
    part = Part(Gone("died"), Gone("died"))
    assert Supervised(part, (Gone,)).score_items([1]) == [1.0]
    assert part.rebuilt == 0


def test_what_fails_for_ever_and_what_is_no_failure_of_the_engine_comes_through() -> None:
    part = Part(*[EngineError("lost")] * (RETRIES + 1))
    with pytest.raises(EngineError):
        Supervised(part, ()).score_items([1])
    with pytest.raises(ValueError, match="mistake"):
        Supervised(Part(ValueError("mistake")), (Gone,)).score_items([1])


def judging(*overrides: str) -> Judging:
    recipe: Any = load(SMOKE, overrides)
    return Judging(recipe, ExitStack())


def count(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_where_one_reward_does_both_nothing_is_watched() -> None:
    one = judging()
    assert one.train is one.checker
    assert one.watched is None
    assert not one.hosts_a_model


def test_a_reward_beside_its_check_is_watched() -> None:
    one = judging(
        "reward={type: callable, function: 'tests.align.build.test_judging:count'}",
        "evaluation={reward: {type: verifier}}",
    )
    assert isinstance(one.train, CheckedScorer)
    assert one.watched is not None
    assert one.watched is not one.checker


def test_polar_learns_normalised_and_is_watched_raw(tmp_path: Path) -> None:
    folder = build_tiny_classifier(tmp_path / "polar", seed=0)
    one = judging(f"reward={{type: polar, model: {folder}}}")
    assert one.hosts_a_model
    assert isinstance(one.train, CheckedScorer) and isinstance(one.train, MeteredScorer)
    assert isinstance(one.watched, PolarReward)
    # Held-out answers leave the running statistics of training alone.
    assert one.train.state_dict() != one.watched.state_dict()


def test_a_model_that_is_not_there_is_found_out_before_anything_starts() -> None:
    with pytest.raises(PolarError, match="no such policy discriminator"):
        judging("reward={type: polar, model: 'polar:none'}")
