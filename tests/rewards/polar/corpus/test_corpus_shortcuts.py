"""Shortcut accuracies by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewards.polar.corpus.shortcuts import accuracy, embedding_rule, length_rules
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
