"""Shortcut accuracies by hand."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewards.polar.corpus.shortcuts import accuracy, embedding_rule, fitted_length_rule, length_rules, policy_rule
from rewards.polar.types import PolarError


def test_rules_on_length() -> None:
    # Reference, chosen, rejected: chosen longer and closer; shorter and farther; as long and as close.
    rules = length_rules([(10, 9, 5), (10, 5, 9), (10, 9, 9), (10, 9, 5)])
    assert {name: found.value for name, found in rules.items()} == {"longer": 0.625, "shorter": 0.375, "closest": 0.625}
    assert length_rules([]) == {}


def test_wilsons_interval() -> None:
    # 50 of 100: centre 1/2, half width 1.96 sqrt(1/400 + 1.96^2/40000) / (1 + 1.96^2/100).
    found = accuracy([1.0] * 50 + [-1.0] * 50)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert found.at_chance
    beaten = accuracy([1.0] * 70 + [-1.0] * 30)
    assert beaten is not None and not beaten.at_chance
    assert accuracy([]) is None


def test_a_rule_on_amounts_is_found_where_signs_tell_nothing() -> None:
    # The chosen one is much closer to the reference half of the time, else a little farther.
    rng = random.Random(0)
    lengths = [
        (100, 100 + rng.randint(0, 5), 190 + rng.randint(0, 5))
        if rng.random() < 0.5
        else (100, 110 + rng.randint(1, 5), 105 + rng.randint(1, 5))
        for _ in range(400)
    ]
    assert length_rules(lengths)["closest"].value == pytest.approx(0.5, abs=0.06)
    found = fitted_length_rule(lengths[:200], lengths[200:])
    assert found is not None and found.value > 0.9
    noise = [(rng.randint(50, 99), rng.randint(50, 99), rng.randint(50, 99)) for _ in range(1000)]
    nothing = fitted_length_rule(noise[:500], noise[500:])
    assert nothing is not None and nothing.value == pytest.approx(0.5, abs=0.1)
    assert fitted_length_rule([], lengths) is None
    assert fitted_length_rule(lengths, []) is None


def test_a_policy_that_is_chosen_more_often_tells() -> None:
    train = [("a", "b"), ("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]
    # Shares of being chosen: a 2/3, b 2/5, c 1/2; an unknown policy counts 1/2.
    found = policy_rule(train, [("a", "b"), ("c", "a"), ("c", "new"), ("new", "b")])
    assert found is not None and found.value == (1 + 0 + 0.5 + 1) / 4
    assert policy_rule(train, []) is None


def test_embeddings_prefer_the_more_similar_text() -> None:
    table = {"r": (1.0, 0.0), "near": (0.8, 0.6), "far": (0.0, 1.0)}

    def embed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.array([table[text] for text in texts])

    found = embedding_rule(["r", "r", "r"], ["near", "far", "far"], ["far", "near", "far"], embed)
    assert found is not None and (found.value, found.count) == (0.5, 3)
    assert embedding_rule([], [], [], embed) is None


@pytest.mark.parametrize("rows", [np.zeros((1, 2)), np.zeros(2), np.full((2, 2), np.nan)])
def test_an_embedder_that_does_not_answer_every_text_is_caught(rows: np.ndarray[Any, Any]) -> None:
    with pytest.raises(PolarError, match="the embedder gave"):
        embedding_rule(["a", "b"], ["a", "b"], ["a", "b"], lambda texts: rows)
