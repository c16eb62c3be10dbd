"""Pairs as token ids, and the order of a training."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.errors import UserError
from align.polar.pairs import encode_pairs, training_order
from rewards.polar.model import build_polar, load_encoder
from rewards.polar.types import Triple


def test_pairs_are_what_the_encoder_writes(tiny_model: Path, tmp_path: Path) -> None:
    encoder = load_encoder(build_polar(tiny_model, tmp_path / "polar", max_response_length=5))
    rows = [
        Triple("ask", "one", "two", "three"),
        Triple("ask", "one", "longer than five", "x"),
        Triple("", "", "a", "a"),
    ]
    pairs = encode_pairs(rows, encoder, "train on")
    for triple, chosen, rejected in zip(rows, pairs.chosen, pairs.rejected, strict=True):
        one, other = encoder.encode_triple(triple)
        assert (tuple(chosen.tolist()), tuple(rejected.tolist())) == (one.ids, other.ids)
    assert (len(pairs), pairs.truncated, pairs.identical) == (3, 1, 1)
    # Bytes: "ask" twice, line breaks twice, "one", the separator, "two" or "three", the score token.
    assert pairs.tokens()[0] == 2 * (2 * 3 + 2 + 3 + 2) + 3 + 5
    assert pairs.lengths()[0] == 2 * 3 + 2 + 3 + 2 + 5
    assert pairs.digest() != encode_pairs(rows[::-1], encoder, "train on").digest()


def test_no_triples_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="no triples to validate on"):
        encode_pairs([], None, "validate on")  # type: ignore[arg-type]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    micro=st.integers(1, 4),
    passes=st.integers(1, 5),
    epochs=st.sampled_from([0.5, 1.0, 2.0, 2.5]),
    seed=st.integers(0, 3),
)
def test_every_pair_comes_as_often_as_epochs_say(
    lengths: list[int], micro: int, passes: int, epochs: float, seed: int
) -> None:
    batch = micro * passes
    order = training_order(lengths, batch=batch, micro=micro, epochs=epochs, seed=seed)
    assert len(order) % micro == 0
    assert 0 <= len(order) - epochs * len(lengths) < micro + 1
    counts = Counter(order)
    assert max(counts.values()) - min(counts[i] for i in range(len(lengths))) <= 1 + (
        len(order) > epochs * len(lengths)
    )
    for start in range(0, len(order), batch):
        update = [lengths[i] for i in order[start : start + batch]]
        assert update == sorted(update, reverse=True)
    assert order == training_order(lengths, batch=batch, micro=micro, epochs=epochs, seed=seed)


def test_sorting_stays_within_an_update() -> None:
    """Updates hold the pairs that they would hold unsorted: micro 1 and batch 1 is the permutation itself."""
    lengths = list(range(20))
    plain = training_order(lengths, batch=1, micro=1, epochs=1, seed=4)
    grouped = training_order(lengths, batch=5, micro=1, epochs=1, seed=4)
    assert sorted(plain) == lengths and plain != lengths
    assert all(set(plain[s : s + 5]) == set(grouped[s : s + 5]) for s in range(0, 20, 5))
    assert plain != training_order(lengths, batch=1, micro=1, epochs=1, seed=5)


def test_a_last_pass_is_filled_up() -> None:
    order = training_order([1] * 5, batch=4, micro=2, epochs=1, seed=0)
    assert len(order) == 6 and set(order[:5]) == set(range(5))
