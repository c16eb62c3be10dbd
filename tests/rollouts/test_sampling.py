"""Sampling by inverting the distribution: values worked out by hand, and agreement with a plain float64 version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rollouts.engines.sampling import filter_logits, filter_rows, sample_tokens

LOGITS = torch.tensor([0.1, 0.2, 0.7]).log()


def _draw(logits: torch.Tensor, *uniforms: float) -> list[int]:
    rows = logits.expand(len(uniforms), -1)
    return sample_tokens(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist()


def test_a_uniform_number_picks_the_token_whose_share_it_falls_in() -> None:
    assert _draw(LOGITS, 0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.9999) == [0, 0, 1, 1, 2, 2]


def test_the_scale_of_the_logits_does_not_matter() -> None:
    assert _draw(LOGITS + 300.0, 0.05, 0.25, 0.5) == _draw(LOGITS - 300.0, 0.05, 0.25, 0.5) == [0, 1, 2]


@pytest.mark.parametrize("size", [5, 128, 300, 1024])
def test_impossible_tokens_are_never_drawn(size: int) -> None:
    """Not at the ends of the interval either, where rounding could step past the last possible token."""
    logits = torch.full((size,), -math.inf)
    logits[size // 2] = 0.0
    assert _draw(logits, 0.0, 0.5, 1 - 2**-53) == [size // 2] * 3


def test_rare_tokens_keep_their_probability() -> None:
    """1e-9 of the mass lies far below the resolution of a float32 sum over the vocabulary."""
    logits = torch.full((256,), -math.inf)
    logits[3], logits[200] = 0.0, math.log(1e-9)
    assert _draw(logits, 1 - 1.1e-9, 1 - 0.9e-9) == [3, 200]


@given(st.integers(1, 700), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
def test_agrees_with_a_running_sum_in_float64(size: int, seed: int, uniform: float) -> None:
    logits = 4 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    shares = logits.double().softmax(-1)
    after = shares.cumsum(-1)
    [token] = _draw(logits, uniform)
    assert after[token] - shares[token] - 1e-6 <= uniform <= after[token] + 1e-6


def test_top_k_keeps_the_largest() -> None:
    kept = filter_logits(LOGITS.unsqueeze(0), top_k=2, top_p=1.0)[0]
    assert torch.isfinite(kept).tolist() == [False, True, True]


@pytest.mark.parametrize(("top_p", "kept"), [(1.0, [1, 1, 1]), (0.95, [1, 1, 1]), (0.85, [0, 1, 1]), (0.5, [0, 0, 1])])
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p: float, kept: list[int]) -> None:
    assert torch.isfinite(filter_logits(LOGITS.unsqueeze(0), 0, top_p)[0]).int().tolist() == kept


def test_the_filters_compose_and_leave_other_rows_alone() -> None:
    rows = torch.stack((LOGITS, LOGITS.flip(0)))
    kept = torch.isfinite(filter_logits(rows, top_k=2, top_p=0.5))
    assert kept.tolist() == [[False, False, True], [True, False, False]]


def by_hand(row: list[float], top_k: int, top_p: float) -> list[bool]:
    """Whether each token stays: as large as the k-th, then of the most likely until their mass reaches p."""
    threshold = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
    weights = [math.exp(x) if x >= threshold else 0.0 for x in row]
    stay, mass = [False] * len(row), 0.0
    for index in sorted(range(len(row)), key=lambda i: -weights[i]):
        if weights[index] and (mass / sum(weights) < top_p or not any(stay)):
            stay[index] = True
        mass += weights[index]
    return stay


@given(
    rows=st.lists(st.permutations(range(12)), min_size=1, max_size=4),
    top_k=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    top_p=st.lists(st.floats(0.011, 0.987), min_size=4, max_size=4),
)
def test_every_row_is_filtered_by_its_own_settings(rows: list[list[int]], top_k: list[int], top_p: list[float]) -> None:
    # Distinct logits whose sums no top_p of the strategy hits exactly.
    logits = torch.tensor(rows, dtype=torch.float32) * 0.37
    count = len(rows)
    kept = filter_rows(logits, torch.tensor(top_k[:count]), torch.tensor(top_p[:count]))
    for row, k, p, stays in zip(logits.tolist(), top_k, top_p, torch.isfinite(kept).tolist(), strict=False):
        near = {q for q in (p - 1e-5, p + 1e-5) if by_hand(row, k, q) != by_hand(row, k, p)}
        assert near or stays == by_hand(row, k, p)
    assert torch.equal(kept[torch.isfinite(kept)], logits[torch.isfinite(kept)])


def test_equal_logits_at_the_threshold_all_stay() -> None:
    kept = filter_logits(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), top_k=2, top_p=1.0)
    assert torch.isfinite(kept).tolist() == [[True, True, True, False]]


def test_switched_off_nothing_is_changed() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0]])
    assert filter_rows(logits, None, None) is logits
    assert torch.equal(filter_logits(logits, top_k=9, top_p=1.0), logits)
