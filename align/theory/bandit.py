"""Proposition 2.1's bandit: online DPO never looks at the better arm, XPO does.

The arms pay r(a) = 1 and r(b) = 1/2, and the reference policy plays a with probability ``exp(-c/beta)``. In every round
two arms are sampled, a Bradley-Terry oracle prefers one, and the next policy is the *exact* minimiser of the objective
over the cumulative buffer, so that what is seen is the algorithm and not an optimiser. Suboptimality is the paper's:
``max J_beta - J_beta(pi)`` with the KL-regularised ``J_beta(pi) = E_pi[r] - beta KL(pi|pi_ref)``.

Source: Xie et al., "Exploratory Preference Optimization", arXiv 2405.21046, Algorithm 1 and Proposition 2.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from align.theory.two_arms import Buffer, Floats, TwoArms, sigmoid

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Arm:
    """One algorithm of the comparison.

    ``second`` is where the second sample of a round comes from, which is also the sample that carries the bonus: the
    frozen reference policy (Algorithm 1) or the current policy. ``identical`` says what becomes of the bonus on
    rounds whose two samples are the same arm: Algorithm 1 keeps it, a labeller that drops such pairs loses it.
    """

    name: str
    alpha: float
    second: Literal["reference", "policy"] = "reference"
    identical: Literal["keep", "drop"] = "keep"


@dataclass(frozen=True, slots=True)
class BanditConfig:
    """The instance, the number of rounds and runs, and the exploration weights to compare.

    ``beta`` and ``c`` fix the instance: ``pi_ref(a) = exp(-c/beta)``. The proposition speaks of at most
    ``exp(1/(8 beta))/2`` rounds (:attr:`horizon`); with ``c = 1/8`` and as many, the better arm stays unseen with
    probability ``(1 - pi_ref(a))^(2 rounds)``, about 1/e. ``v_max`` bounds the policy class by ``|log pi/pi_ref| <=
    v_max/beta``. ``alpha`` is XPO's exploration weight, by default the one of :func:`theorem_alpha`; ``alpha_factors``
    are the multiples of it that are run besides. A run counts as stuck when every one of its iterates is at least
    ``gap`` suboptimal.
    """

    beta: float = 0.02
    c: float = 0.125
    reward_a: float = 1.0
    reward_b: float = 0.5
    v_max: float = 1.0
    rounds: int = 250
    runs: int = 1000
    seed: int = 0
    alpha: float | None = None
    alpha_factors: tuple[float, ...] = (0.01, 0.1, 10.0)
    gap: float = 0.125

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.runs < 2:
            raise ValueError(f"{self.rounds} rounds and {self.runs} runs: give at least 1 round and 2 runs")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; it must be positive, the wrong sign has an arm of its own")

    @property
    def problem(self) -> TwoArms:
        return TwoArms(self.reward_a, self.reward_b, -self.c / self.beta, self.beta, self.v_max)

    @property
    def horizon(self) -> float:
        """The rounds for which Proposition 2.1 keeps online DPO suboptimal: ``exp(1/(8 beta))/2``."""
        return 0.5 * math.exp(1 / (8 * self.beta))


def theorem_alpha(config: BanditConfig, delta: float = 0.05) -> float:
    """The exploration weight of the paper's Theorem 3.1, with 1 for its unspecified absolute constant.

    ``beta/((V_max + R_max) e^(2 R_max)) sqrt(log(|Pi| T/delta) log T/(T C_cov))``. Coverability is at most the number
    of arms, 2. The theorem is about finite classes; ``|Pi|`` is here the size of a cover of the policy class whose
    implicit rewards are 1/T apart. So it gives an order of magnitude, and the sweep around it is part of the result.
    """
    low, high = config.problem.bounds
    rounds, r_max = max(2, config.rounds), max(config.reward_a, config.reward_b)
    policies = math.ceil(config.beta * (high - low) * rounds)
    root = math.sqrt(math.log(policies * rounds / delta) * math.log(rounds) / (2 * rounds))
    return config.beta / ((config.v_max + r_max) * math.exp(2 * r_max)) * root


def arms_of(config: BanditConfig) -> tuple[Arm, ...]:
    """What is compared: online DPO and XPO in the paper's form, then variants and controls."""
    alpha = theorem_alpha(config) if config.alpha is None else config.alpha
    return (
        Arm("online_dpo", 0.0),
        Arm("online_dpo_onpolicy", 0.0, second="policy"),
        Arm("xpo", alpha),
        *(Arm(f"xpo_alpha_x{factor:g}", factor * alpha) for factor in config.alpha_factors),
        Arm("xpo_onpolicy", alpha, second="policy"),
        Arm("xpo_identical_dropped", alpha, identical="drop"),
        Arm("wrong_sign", -alpha),
    )


@dataclass(frozen=True, slots=True)
class BanditResult:
    """``suboptimality[k, t, i]`` of iterate ``pi^(t+1)`` of run ``i`` under ``arms[k]``, [K, rounds + 1, runs].

    The first iterate is the reference policy. ``saw_a[k, i]`` says whether the better arm was ever sampled, by
    either policy.
    """

    config: BanditConfig
    arms: tuple[Arm, ...]
    suboptimality: Floats
    saw_a: Bools

    def index(self, name: str) -> int:
        return [arm.name for arm in self.arms].index(name)

    @property
    def stuck(self) -> Bools:
        """Which runs have every iterate at least ``gap`` suboptimal, [K, runs]."""
        best: Floats = self.suboptimality.min(axis=1)
        return best >= self.config.gap


def draws(config: BanditConfig) -> Floats:
    """Uniform numbers for first sample, second sample and label, [3, rounds, runs].

    Run ``i`` depends on the seed and on ``i`` alone, so that more runs leave the earlier ones as they were. All arms
    share them, which makes their comparison a paired one.
    """
    shape = (config.rounds, 3)
    return np.stack([np.random.default_rng([config.seed, i]).random(shape) for i in range(config.runs)], -1).swapaxes(
        0, 1
    )


def run_bandit(config: BanditConfig) -> BanditResult:
    """Plays all arms side by side, vectorised over runs."""
    problem, arms = config.problem, arms_of(config)
    shape = (len(arms), config.runs)
    own_second = np.array([[arm.second == "policy"] for arm in arms])
    keeps = np.array([[arm.identical == "keep"] for arm in arms])
    alpha = np.broadcast_to(np.array([[arm.alpha] for arm in arms]), shape)
    reference_a, a_preferred = math.exp(problem.log_ref_a), problem.label_probability()
    pairs, wins, bonus_a, bonus_b = (np.zeros(shape) for _ in range(4))
    theta = np.full(shape, problem.theta_ref)
    saw_a = np.zeros(shape, dtype=bool)
    suboptimality = [problem.suboptimality(theta)]
    for first_draw, second_draw, label_draw in zip(*draws(config), strict=True):
        policy_a = sigmoid(theta)
        first = first_draw < policy_a
        second = second_draw < np.where(own_second, policy_a, reference_a)
        informative = first != second
        carries_bonus = informative | keeps
        pairs, wins = pairs + informative, wins + (informative & (label_draw < a_preferred))
        bonus_a, bonus_b = bonus_a + (second & carries_bonus), bonus_b + (~second & carries_bonus)
        saw_a = saw_a | first | second
        theta = _argmin(problem, Buffer(pairs, wins, bonus_a, bonus_b, alpha))
        suboptimality.append(problem.suboptimality(theta))
    return BanditResult(config, arms, np.stack(suboptimality, axis=1), saw_a)


def _argmin(problem: TwoArms, buffer: Buffer) -> Floats:
    """:meth:`TwoArms.argmin` once for each distinct buffer: most runs share theirs with others."""
    columns: Sequence[Floats] = (buffer.pairs, buffer.wins, buffer.bonus_a, buffer.bonus_b, buffer.alpha)
    codes = np.zeros(buffer.pairs.shape, dtype=np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        codes = codes * len(values) + code.reshape(codes.shape)
    _, where, back = np.unique(codes, return_index=True, return_inverse=True)
    theta = problem.argmin(Buffer(*(column.ravel()[where] for column in columns)))
    return theta[back].reshape(codes.shape)
