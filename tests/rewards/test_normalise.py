"""Normalisation: hand-made values, what must not matter, and what passes through."""

import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewards.errors import RewardError
from rewards.normalise import Normaliser
from rewards.types import Score, ScoreFailure

DOWN = ScoreFailure("down")
numbers = st.floats(-1e4, 1e4, allow_nan=False)
rows = st.lists(numbers, min_size=2, max_size=8)


def test_a_group_gets_mean_zero_and_deviation_one() -> None:
    # Mean 2, population variance (1 + 1 + 0) / 3.
    [row] = Normaliser("group").normalise([[1.0, 3.0, 2.0]])
    assert row == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5), 0.0])
    assert Normaliser("group").normalise([[-7.0, -11.0], [5.0], []]) == [[1.0, -1.0], [0.0], []]


def test_equal_scores_of_a_group_become_zero() -> None:
    # The mean of three times 0.1 is not 0.1 in floating point: a division by its rounding error would give thousands.
    assert Normaliser("group").normalise([[0.1, 0.1, 0.1], [-3.0, DOWN, -3.0]]) == [[0.0, 0.0, 0.0], [0.0, DOWN, 0.0]]


@pytest.mark.parametrize("kind", ["none", "group", "running"])
def test_failures_pass_untouched_and_count_nowhere(kind: str) -> None:
    given_: list[list[Score]] = [[1.0, DOWN, 3.0, math.inf], [DOWN], [math.nan]]
    made = Normaliser(kind).normalise(given_)  # type: ignore[arg-type]
    assert (made[0][1], made[0][3], made[1]) == (DOWN, math.inf, [DOWN])
    assert math.isnan(made[2][0])  # type: ignore[arg-type]
    [clean] = Normaliser(kind).normalise([[1.0, 3.0]])  # type: ignore[arg-type]
    assert [made[0][0], made[0][2]] == clean == ([1.0, 3.0] if kind == "none" else [-1.0, 1.0])


@given(rows, st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_neither_shift_nor_scale_of_a_group_matters(row: list[float], shift: float, scale: float) -> None:
    assume(max(row) - min(row) > 1e-3)
    [plain] = Normaliser("group").normalise([list(row)])
    [moved] = Normaliser("group").normalise([[shift + scale * x for x in row]])
    assert moved == pytest.approx(plain, rel=1e-5, abs=1e-5)


@given(st.lists(rows, min_size=1, max_size=4), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_neither_shift_nor_scale_of_all_scores_matters_to_running_statistics(
    groups: list[list[float]], shift: float, scale: float
) -> None:
    flat = [x for row in groups for x in row]
    assume(max(flat) - min(flat) > 1e-1)
    plain, moved = Normaliser("running"), Normaliser("running")
    for row in groups[:-1]:
        plain.normalise([list(row)])
        moved.normalise([[shift + scale * x for x in row]])
    [a] = plain.normalise([list(groups[-1])])
    [b] = moved.normalise([[shift + scale * x for x in groups[-1]]])
    assert b == pytest.approx(a, rel=1e-3, abs=1e-3)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=6))
def test_a_group_keeps_its_order_and_stays_finite_at_any_size(row: list[float]) -> None:
    [made] = Normaliser("group").normalise([list(row)])
    assert all(isinstance(x, float) and math.isfinite(x) for x in made)
    assert math.fsum(made) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    for (x, a), (y, b) in zip(zip(row, made, strict=True), sorted(zip(row, made, strict=True)), strict=True):
        assert x >= y or a <= b  # type: ignore[operator]


def test_running_statistics_are_those_of_all_scores_so_far() -> None:
    normaliser = Normaliser("running")
    seen: list[float] = []
    for batch in ([[1.0, 4.0], [-2.0]], [[10.0, DOWN]], [[0.5, 0.5, 7.0]]):
        seen += [x for row in batch for x in row if isinstance(x, float)]
        mean, deviation = statistics.fmean(seen), statistics.pstdev(seen)
        made = normaliser.normalise(batch)
        for row, new in zip(batch, made, strict=True):
            for x, y in zip(row, new, strict=True):
                assert y is DOWN if x is DOWN else y == pytest.approx((x - mean) / deviation)  # type: ignore[operator]


def test_running_scores_are_zero_while_they_have_all_been_equal() -> None:
    normaliser = Normaliser("running")
    assert normaliser.normalise([[0.1, 0.1]]) == [[0.0, 0.0]]
    assert normaliser.normalise([[0.1]]) == [[0.0]]
    assert normaliser.normalise([[0.2]])[0][0] > 0  # type: ignore[operator]


def test_running_statistics_survive_a_checkpoint() -> None:
    first, second = Normaliser("running"), Normaliser("running")
    first.normalise([[1.0, 5.0, -3.0]])
    second.load_state_dict(first.state_dict())
    assert second.normalise([[2.0, 8.0]]) == first.normalise([[2.0, 8.0]])
    with pytest.raises(RewardError, match="by 'running', not 'group'"):
        Normaliser("group").load_state_dict(first.state_dict())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RewardError, match="'batch' is unknown; use none, group or running"):
        Normaliser("batch")  # type: ignore[arg-type]
