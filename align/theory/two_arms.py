"""A bandit with two arms, and the exact minimiser of XPO's objective over all its policies.

A policy is one number, ``theta = log pi(a) - log pi(b)``. The class is the one the paper's analysis assumes,
``|log pi/pi_ref| <= V_max/beta`` for both arms, which is an interval of theta. All functions work on arrays of ``S``
independent problems.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HALVINGS = 64
"""Bisection steps: the interval of theta shrinks by 2^64, to the spacing of float64 numbers."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """What the objective needs to know of the cumulative buffer and its bonus, [S] each.

    ``pairs`` that compare a with b, the number of them that a ``wins``, how often the sample that carries the bonus
    was a (``bonus_a``) and b (``bonus_b``), and the weight ``alpha`` of the bonus. Pairs of one arm with itself are in
    ``bonus_a`` and ``bonus_b`` alone: their DPO loss is log 2 whatever the policy.
    """

    pairs: Floats
    wins: Floats
    bonus_a: Floats
    bonus_b: Floats
    alpha: Floats


@dataclass(frozen=True, slots=True)
class TwoArms:
    """Rewards of the arms a and b, ``pi_ref(a) = exp(log_ref_a)``, and the constants of the problem.

    ``beta`` and ``v_max`` are in units of the reward, log-probabilities in nats.
    """

    reward_a: float
    reward_b: float
    log_ref_a: float
    beta: float
    v_max: float

    def __post_init__(self) -> None:
        if not self.log_ref_a < 0:
            raise ValueError(f"log pi_ref(a) is {self.log_ref_a}; it must be negative")
        if not 0 < self.beta < 0.5:
            raise ValueError(f"beta is {self.beta}; the exact minimiser needs it between 0 and 0.5")
        needed = self.beta * max(abs(self.log_ratio_a), abs(self.log_ratio_b))
        if self.v_max < needed:
            raise ValueError(f"v_max {self.v_max} leaves pi*_beta out of the class; give at least {needed:.3g}")

    @property
    def log_ref_b(self) -> float:
        return _log1mexp(self.log_ref_a)

    @property
    def theta_ref(self) -> float:
        return self.log_ref_a - self.log_ref_b

    @property
    def optimal_value(self) -> float:
        """``max J_beta = beta log sum_x pi_ref(x) exp(r(x)/beta)``, reached by pi*_beta ~ pi_ref exp(r/beta)."""
        return self.beta * float(
            np.logaddexp(self.log_ref_a + self.reward_a / self.beta, self.log_ref_b + self.reward_b / self.beta)
        )

    @property
    def log_ratio_a(self) -> float:
        """``log pi*_beta(a)/pi_ref(a) = (r(a) - max J_beta)/beta``, equation 9 of the paper."""
        return (self.reward_a - self.optimal_value) / self.beta

    @property
    def log_ratio_b(self) -> float:
        return (self.reward_b - self.optimal_value) / self.beta

    @property
    def bounds(self) -> tuple[float, float]:
        """The class as an interval of theta: where one of the two log-ratios reaches ``+-v_max/beta``."""
        reach = self.v_max / self.beta
        low = max(_logit(self.log_ref_a - reach), -_logit(self.log_ref_b + reach))
        return low, min(_logit(self.log_ref_a + reach), -_logit(self.log_ref_b - reach))

    def label_probability(self) -> float:
        """That the Bradley-Terry oracle prefers a to b: ``sigmoid(r(a) - r(b))``."""
        return 1 / (1 + math.exp(self.reward_b - self.reward_a))

    def suboptimality(self, theta: Floats) -> Floats:
        """``max J_beta - J_beta(pi)`` [S] in units of the reward, where ``J_beta(pi) = E_pi[r] - beta KL(pi|pi_ref)``.

        This is the paper's measure: the regularised one, against pi*_beta. Computed as ``beta KL(pi|pi*_beta)``,
        which it equals, so that small values are not differences of large ones.
        """
        log_a, log_b = -softplus(-theta), -softplus(theta)
        to_a = log_a - (self.log_ref_a + self.log_ratio_a)
        to_b = log_b - (self.log_ref_b + self.log_ratio_b)
        lacking: Floats = self.beta * (np.exp(log_a) * to_a + np.exp(log_b) * to_b)
        return np.maximum(0.0, lacking)

    def objective(self, theta: Floats, buffer: Buffer) -> Floats:
        """XPO's objective [S], summed over the buffer, in nats (arXiv 2405.21046, Algorithm 1, line 6)."""
        margin = self.beta * (theta - self.theta_ref)
        losses = buffer.pairs - buffer.wins
        dpo: Floats = buffer.wins * softplus(-margin) + losses * softplus(margin)
        return dpo - buffer.alpha * (buffer.bonus_a * softplus(-theta) + buffer.bonus_b * softplus(theta))

    def slope(self, theta: Floats, buffer: Buffer) -> Floats:
        """Derivative of :meth:`objective` in theta, [S].

        Without ``bonus_a`` a zero of it satisfies ``sigmoid(beta (theta - theta_ref)) = wins/pairs +
        (alpha/beta) (bonus_b/pairs) pi(a)``.
        """
        dpo = self.beta * (buffer.pairs * sigmoid(self.beta * (theta - self.theta_ref)) - buffer.wins)
        return dpo + buffer.alpha * (buffer.bonus_a * sigmoid(-theta) - buffer.bonus_b * sigmoid(theta))

    def argmin(self, buffer: Buffer) -> Floats:
        """The policies [S] of the class that minimise the objective over the whole buffer; global, not local.

        With ``alpha > 0`` the bonus is concave, the objective is not convex, and its minimum can be at an end of the
        class. But its second derivative is negative on one interval at most (:meth:`_concave_interval`). So a minimum
        lies to the left of that interval or to the right of it, where the objective is convex and bisection on the
        slope is exact; the lower one of the two is taken. Where the buffer says nothing (every term is constant) the
        reference policy is returned, as any method that starts there would.
        """
        low, high = (np.full(buffer.pairs.shape, end) for end in self.bounds)
        left_end, right_start = self._concave_interval(buffer, low, high)

        def rises(theta: Floats) -> NDArray[np.bool_]:
            return self.slope(theta, buffer) > 0

        left, right = _bisect(rises, low, left_end), _bisect(rises, right_start, high)
        lower_right = self.objective(right, buffer) < self.objective(left, buffer)
        best = np.where(lower_right, right, left)
        silent = (buffer.pairs == 0) & ((buffer.alpha == 0) | (buffer.bonus_a + buffer.bonus_b == 0))
        return np.where(silent, self.theta_ref, best)

    def _concave_interval(self, buffer: Buffer, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Between which thetas the objective is concave; an empty interval where it is convex.

        The second derivative, ``pairs beta^2 s(beta (theta - theta_ref)) - alpha bonus s(theta)`` with s the
        derivative of the sigmoid, is negative where ``log s(theta) - log s(beta (theta - theta_ref))`` exceeds a
        constant. That difference has the derivative ``-tanh(theta/2) + beta tanh(beta (theta - theta_ref)/2)``, which
        for beta < 1/sqrt(2) has a single zero, from plus to minus: it rises to one peak and falls.
        """
        weight = buffer.alpha * (buffer.bonus_a + buffer.bonus_b)
        with np.errstate(divide="ignore", invalid="ignore"):
            threshold = np.log(buffer.pairs * self.beta**2) - np.log(np.maximum(weight, 0))
        threshold = np.where(weight > 0, threshold, np.inf)

        def excess(theta: Floats) -> Floats:
            ratio = _log_bell(theta) - _log_bell(self.beta * (theta - self.theta_ref))
            return np.asarray(ratio - threshold)

        def past_peak(theta: Floats) -> NDArray[np.bool_]:
            return np.tanh(theta / 2) > self.beta * np.tanh(self.beta * (theta - self.theta_ref) / 2)

        peak = _bisect(past_peak, low, high)
        return _bisect(lambda t: excess(t) > 0, low, peak), _bisect(lambda t: excess(t) <= 0, peak, high)


def _bisect(passed: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats) -> Floats:
    """Where ``passed`` turns from false to true between ``low`` and ``high``; the end itself where it never turns."""
    never, always = ~passed(high), passed(low)
    below, above = low, high
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        beyond = passed(middle)
        below, above = np.where(beyond, below, middle), np.where(beyond, middle, above)
    return np.where(always, low, np.where(never, high, (below + above) / 2))


def softplus(x: Floats) -> Floats:
    """``log(1 + exp(x))``, which is ``-log sigmoid(-x)``."""
    return np.asarray(np.logaddexp(0, x))


def sigmoid(x: Floats) -> Floats:
    """``1/(1 + exp(-x))`` without overflow at either end."""
    return np.asarray(np.exp(-softplus(-x)))


def _log_bell(x: Floats) -> Floats:
    """``log(sigmoid(x) sigmoid(-x))``, the logarithm of the sigmoid's derivative."""
    return -softplus(-x) - softplus(x)


def _log1mexp(x: float) -> float:
    """``log(1 - exp(x))`` for x < 0, without loss of digits at either end."""
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))


def _logit(log_p: float) -> float:
    """``log p - log(1 - p)`` from ``log p``; infinite where p would be 1 or more, so that it bounds nothing."""
    return log_p - _log1mexp(log_p) if log_p < 0 else math.inf
