"""The exact minimiser against hand-derived values and against a dense grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.theory.two_arms import Buffer, TwoArms

PROBLEM = TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=-6.25, beta=0.02, v_max=1.0)


def buffer(pairs: float, wins: float, bonus_a: float, bonus_b: float, alpha: float) -> Buffer:
    return Buffer(*(np.array([float(x)]) for x in (pairs, wins, bonus_a, bonus_b, alpha)))


def argmin(problem: TwoArms, *numbers: float) -> float:
    return float(problem.argmin(buffer(*numbers))[0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_without_bonus_the_implicit_reward_is_the_log_odds_of_the_labels() -> None:
    # -w log s(m) - (n - w) log s(-m) has its minimum at s(m) = w/n, and m = beta (theta - theta_ref).
    theta = argmin(PROBLEM, 4, 3, 0, 4, 0.0)
    assert theta == pytest.approx(PROBLEM.theta_ref + math.log(3) / 0.02, abs=1e-9)


@pytest.mark.parametrize(("pairs", "wins", "alpha"), [(100, 62, 0.001), (40, 20, 0.004), (7, 5, 0.0005)])
def test_the_minimiser_satisfies_the_fixed_point_of_the_bonus(pairs: int, wins: int, alpha: float) -> None:
    # All reference samples are b, one a pair: d/dtheta [DPO] = n beta (s(m) - p), d/dtheta [alpha n log pi(b)] =
    # -alpha n pi(a); the sum is zero where s(m) = p + (alpha/beta) pi(a).
    problem = TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=-3.0, beta=0.1, v_max=2.0)
    theta = argmin(problem, pairs, wins, 0, pairs, alpha)
    assert problem.bounds[0] < theta < problem.bounds[1]
    margin = 0.1 * (theta - problem.theta_ref)
    assert sigmoid(margin) == pytest.approx(wins / pairs + alpha / 0.1 * sigmoid(theta), abs=1e-12)


def test_labels_that_all_agree_end_at_the_bound_of_the_class() -> None:
    low, high = PROBLEM.bounds
    assert argmin(PROBLEM, 1, 1, 0, 1, 0.0) == pytest.approx(high)
    assert argmin(PROBLEM, 1, 0, 0, 1, 0.0) == pytest.approx(low)


def test_the_bounds_are_where_a_log_ratio_reaches_v_max() -> None:
    # Upwards a could grow by e^50 > 1/pi_ref(a), so that b binds: pi(b) = pi_ref(b) e^-50. Downwards a binds.
    low, high = PROBLEM.bounds
    log_b_at_high, log_a_at_low = -np.logaddexp(0, high), -np.logaddexp(0, -low)
    assert log_b_at_high - math.log1p(-math.exp(-6.25)) == pytest.approx(-50)
    assert log_a_at_low + 6.25 == pytest.approx(-50)
    # With room for less than that, a binds upwards too.
    narrow = TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=-30.0, beta=0.02, v_max=0.59)
    assert -np.logaddexp(0, -narrow.bounds[1]) == pytest.approx(-30 + 0.59 / 0.02, abs=1e-9)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1.0])
def test_any_bonus_on_b_alone_sends_an_uninformed_policy_to_a(alpha: float) -> None:
    # Nothing but alpha log pi(b) is in the objective: the minimum is at the least pi(b) of the class.
    assert argmin(PROBLEM, 0, 0, 0, 1, alpha) == pytest.approx(PROBLEM.bounds[1])
    assert argmin(PROBLEM, 0, 0, 0, 1, -alpha) == pytest.approx(PROBLEM.bounds[0])


def test_of_two_minima_at_the_ends_the_lower_is_taken() -> None:
    # alpha (log pi(a) + log pi(b)) falls towards both ends: to about -56.25 below (pi_ref(a) e^-50 at log pi_ref(a) =
    # -6.25) and to about -50 above. Five samples of b to one of a turn it round: -56.25 against -250.
    assert argmin(PROBLEM, 0, 0, 1, 1, 0.01) == pytest.approx(PROBLEM.bounds[0])
    assert argmin(PROBLEM, 0, 0, 1, 5, 0.01) == pytest.approx(PROBLEM.bounds[1])


def test_a_buffer_that_says_nothing_leaves_the_reference_policy() -> None:
    assert argmin(PROBLEM, 0, 0, 3, 9, 0.0) == PROBLEM.theta_ref
    assert argmin(PROBLEM, 0, 0, 0, 0, 0.1) == PROBLEM.theta_ref


@settings(max_examples=150, deadline=None)
@given(
    beta=st.floats(0.01, 0.4),
    log_ref_a=st.floats(-12, -0.05),
    pairs=st.integers(0, 300),
    share=st.floats(0, 1),
    bonus=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    strength=st.floats(-2, 2),
)
def test_no_point_of_a_dense_grid_is_better(
    beta: float, log_ref_a: float, pairs: int, share: float, bonus: tuple[int, int], strength: float
) -> None:
    problem = TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=log_ref_a, beta=beta, v_max=1.0)
    state = buffer(pairs, round(share * pairs), *bonus, strength * beta)
    theta = problem.argmin(state)
    low, high = problem.bounds
    assert low - 1e-9 <= theta[0] <= high + 1e-9
    near_zero = np.linspace(max(low, -12), min(high, 12), 2001) if low < 12 and high > -12 else np.array([low])
    grid = np.concatenate([np.linspace(low, high, 4001), near_zero])
    lowest = problem.objective(grid, state).min()
    assert problem.objective(theta, state)[0] <= lowest + 1e-9 * (1 + abs(lowest))


@given(theta=st.floats(-20, 20), pairs=st.integers(0, 50), share=st.floats(0, 1), alpha=st.floats(-0.1, 0.1))
def test_the_slope_is_the_derivative(theta: float, pairs: int, share: float, alpha: float) -> None:
    state, step = buffer(pairs, round(share * pairs), 2, pairs + 1, alpha), 1e-4
    rise = PROBLEM.objective(np.array([theta + step]), state) - PROBLEM.objective(np.array([theta - step]), state)
    assert PROBLEM.slope(np.array([theta]), state)[0] == pytest.approx(rise[0] / (2 * step), abs=1e-6)


def test_suboptimality_is_that_of_the_regularised_objective() -> None:
    # J_beta = E[r] - beta KL by its definition, against a grid and against the closed form of the optimum.
    thetas = np.linspace(-8, 8, 1601)
    a = 1 / (1 + np.exp(-thetas))
    ref_a = math.exp(-6.25)
    kl = a * np.log(a / ref_a) + (1 - a) * np.log((1 - a) / (1 - ref_a))
    value = a * 1.0 + (1 - a) * 0.5 - 0.02 * kl
    optimum = 0.02 * math.log(ref_a * math.exp(1 / 0.02) + (1 - ref_a) * math.exp(0.5 / 0.02))
    assert PROBLEM.optimal_value == pytest.approx(optimum, abs=1e-12)
    assert PROBLEM.suboptimality(thetas) == pytest.approx(optimum - value, abs=1e-12)


def test_the_reference_policy_is_three_eighths_suboptimal_where_c_is_one_eighth() -> None:
    # J*_beta = 1 - c + O(beta e^(-3/(8 beta))), J_beta(pi_ref) = 1/2 + pi_ref(a)/2: the gap is 3/8 - e^-6.25/2 here.
    gap = PROBLEM.suboptimality(np.array([PROBLEM.theta_ref]))[0]
    assert gap == pytest.approx(3 / 8 - math.exp(-6.25) / 2, abs=1e-7)


def test_the_optimal_policy_is_in_the_class_or_the_problem_is_refused() -> None:
    # pi*_beta needs beta log pi*/pi_ref(b) = r(b) - J* = 1/2 - 7/8.
    with pytest.raises(ValueError, match=r"give at least 0\.375"):
        TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=-6.25, beta=0.02, v_max=0.37)
    with pytest.raises(ValueError, match="must be negative"):
        TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=0.0, beta=0.02, v_max=1.0)
    with pytest.raises(ValueError, match="between 0 and"):
        TwoArms(reward_a=1.0, reward_b=0.5, log_ref_a=-1.0, beta=0.9, v_max=1.0)
