"""Temperatures and thresholds: by hand, and that the wanted rate is kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.success.calibration import FLATTEST, SHARPEST, choose_threshold, fit_temperature, sigmoid
from rewards.success.errors import SuccessError


def test_a_known_temperature_is_found() -> None:
    # Of 4 done, 3 are at logit 6 and 1 at -6, and as many undone the other way round: P(done | 6) = 3/4 means
    # sigmoid(6 / T) = 3/4, so T = 6 / log 3.
    logits = [6, 6, 6, -6, -6, -6, -6, 6]
    done = [True] * 4 + [False] * 4
    assert fit_temperature(logits, done) == pytest.approx(6 / math.log(3), rel=1e-6)


def test_classes_weigh_the_same_whatever_their_size() -> None:
    logits = [6, 6, 6, -6] + [-6, -6, -6, 6] * 50
    done = [True] * 4 + [False] * 200
    assert fit_temperature(logits, done) == pytest.approx(6 / math.log(3), rel=1e-6)


def test_the_temperature_has_limits() -> None:
    assert fit_temperature([5.0, -5.0], [True, False]) == SHARPEST
    assert fit_temperature([-5.0, 5.0], [True, False]) == FLATTEST


def test_the_threshold_lies_halfway_in_log_odds() -> None:
    # The highest undone score is 0.5 (log-odds 0), the next above it 0.9 (log 9): halfway is log 3, so 0.75.
    assert choose_threshold([0.1, 0.5, 0.9, 0.95], [False, False, True, True], 0.0) == pytest.approx(0.75)
    assert choose_threshold([0.1, 0.2, 0.21], [False, False, True], 0.0) == 0.5
    assert choose_threshold([0.1, 0.2, 0.21], [False, False, True], 0.0, least=0.7) == 0.7


def test_an_allowed_share_may_pass() -> None:
    p = [0.9] + [0.6] + [0.1] * 8 + [0.95, 0.99]
    done = [False] * 10 + [True] * 2
    assert 0.6 < choose_threshold(p, done, 0.1) < 0.9  # one of ten passes
    assert 0.9 < choose_threshold(p, done, 0.09) < 0.95  # less than one: none does


def test_where_an_undone_frame_scores_highest_nothing_passes() -> None:
    threshold = choose_threshold([0.3, 0.99, 0.9], [False, False, True], 0.0)
    assert 0.99 < threshold < 1


@given(
    st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: any(d for _, d in rows) and not all(d for _, d in rows)
    ),
    st.sampled_from([0.0, 0.01, 0.1, 0.3]),
)
def test_the_wanted_rate_is_kept(rows: list[tuple[float, bool]], rate: float) -> None:
    p, done = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    threshold = choose_threshold(p, done, rate)
    assert 0.5 <= threshold < 1
    assert np.mean(p[~done] >= threshold) <= rate + 1e-9


def test_a_missing_class_is_refused() -> None:
    with pytest.raises(SuccessError, match="undone"):
        choose_threshold([0.5], [True], 0.1)
    with pytest.raises(SuccessError, match="task done"):
        fit_temperature([0.5], [False])
    with pytest.raises(ValueError, match="max_false_positive_rate"):
        choose_threshold([0.5, 0.6], [True, False], 1.0)


def test_the_sigmoid_does_not_overflow() -> None:
    values = sigmoid(np.array([-1e4, 0.0, 1e4, math.log(3)]))
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.75])
