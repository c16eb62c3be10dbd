import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.tracking.intervals import accuracy_difference, over_seeds
from rewards.intervals import wilson

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60)


def test_wilson_by_hand() -> None:
    # 41 of 200: p = 0.205, z^2 = 3.8415; centre = (0.205 + 0.009604) / 1.0192075 = 0.210559;
    # half = 1.95996 * sqrt(0.000814875 + 0.000024009) / 1.0192075 = 0.055698.
    low, high = wilson(41, 200)
    assert low == pytest.approx(0.154861, abs=2e-5)
    assert high == pytest.approx(0.266257, abs=2e-5)


def test_wilson_at_the_ends() -> None:
    # At 0 of n the upper end is z^2 / (n + z^2).
    assert wilson(0, 10)[0] == 0.0
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)


@pytest.mark.parametrize(("right", "problems"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_the_impossible(right: int, problems: int) -> None:
    with pytest.raises(ValueError, match="problem"):
        wilson(right, problems)


def test_difference_matches_the_published_example() -> None:
    # Fagerland, Lydersen and Laake (2014), airway hyper-responsiveness: 21 children, 1 changed one way, 7 the other;
    # Bonett and Price's interval is (-0.51, -0.013). By hand: 2/23 - 8/23 = -0.26087,
    # sd = sqrt((10/23 - 0.0680529) / 23) = 0.126275, half = 0.247494.
    before = [1.0] * 7 + [0.0] + [1.0] + [0.0] * 12
    after = [0.0] * 7 + [1.0] + [1.0] + [0.0] * 12
    difference, low, high = accuracy_difference(before, after)
    assert difference == pytest.approx(-6 / 21)
    assert low == pytest.approx(-0.508364, abs=1e-4)
    assert high == pytest.approx(-0.013376, abs=1e-4)


def test_pairing_narrows_the_interval() -> None:
    # 100 easy and 100 hard problems, 10 hard ones learnt: unpaired, the spread of difficulty would drown it.
    before = [1.0] * 100 + [0.0] * 100
    after = [1.0] * 110 + [0.0] * 90
    _, low, _ = accuracy_difference(before, after)
    unpaired = 0.05 - 1.96 * math.sqrt(0.25 / 200 + 0.55 * 0.45 / 200)
    assert unpaired < 0 < low


def test_a_uniform_change_on_few_problems_is_not_certain() -> None:
    difference, low, high = accuracy_difference([0.0] * 3, [1.0] * 3)
    assert difference == 1.0
    assert low < 0.2
    assert high <= 1.0


@given(SCORES)
def test_swapping_before_and_after_turns_the_interval_round(scores: list[tuple[float, float]]) -> None:
    before, after = [old for old, _ in scores], [new for _, new in scores]
    difference, low, high = accuracy_difference(before, after)
    assert accuracy_difference(after, before) == pytest.approx((-difference, -high, -low), abs=1e-12)
    assert -1 <= low < high <= 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [([1.0], [1.0, 0.0], "same problems"), ([], [], "at least one"), ([2.0], [1.0], "between 0 and 1")],
)
def test_bad_scores_are_refused(before: list[float], after: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_difference(before, after)


def test_three_seeds_by_hand() -> None:
    # Mean 0.4, deviations -0.1, 0, 0.1: s = 0.1; half = 4.303 * 0.1 / sqrt(3) = 0.24843.
    mean, low, high = over_seeds([0.3, 0.4, 0.5])
    assert (mean, low, high) == pytest.approx((0.4, 0.15157, 0.64843), abs=1e-5)
    assert over_seeds([0.7]) == (0.7, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([])
