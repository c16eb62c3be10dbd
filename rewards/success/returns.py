"""Monte-Carlo returns of sparse-reward episodes, where a failure is taken to go on forever."""

import numpy as np
from numpy.typing import NDArray


def monte_carlo_returns(
    rewards: NDArray[np.floating], terminals: NDArray[np.bool_], *, gamma: float, failure_reward: float
) -> NDArray[np.float32]:
    """Discounted returns-to-go of one episode, [T], from its rewards [T] and terminal flags [T].

        G_t = r_t                     where step t is terminal
        G_t = r_t + gamma * G_{t+1}   elsewhere,  G_T = failure_reward / (1 - gamma)

    An episode that does not end in a terminal step never succeeded, however it was cut: the behaviour is credited with
    paying ``failure_reward`` a step for all time. With rewards of -1 a step, 0 at success, and ``failure_reward`` -1, a
    failure is therefore worth ``-1 / (1 - gamma)`` at every step, and a step with ``k`` more payments before success
    ``-(1 - gamma**k) / (1 - gamma)``. Nothing is bootstrapped from a learned value. With ``failure_reward`` 0 it is
    the plain sum of what was paid, which overstates a failure's return where rewards are negative: Cal-QL would then
    hold the values of failing behaviour up.

    Steps before a terminal step in the middle are worth what they were worth up to it, and steps after it are judged
    by what follows them: the last frames of a demonstration may all be marked as successes.

    Source: Nakamoto et al., "Cal-QL", arXiv 2303.05479, and its code, which gives the steps of a failed sparse
    trajectory ``reward_neg / (1 - gamma)`` each; the success form is that of RoboFuME's relabelling.

    Raises ``ValueError`` when ``gamma`` is not within [0, 1), the shapes differ or a reward is not finite.
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be at least 0 and below 1, got {gamma}")
    if rewards.ndim != 1 or rewards.shape != terminals.shape:
        raise ValueError(f"rewards and terminals must both be [T], got {rewards.shape} and {terminals.shape}")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite")
    returns = np.empty(len(rewards), dtype=np.float64)
    later = failure_reward / (1 - gamma)
    for step in range(len(rewards) - 1, -1, -1):
        later = float(rewards[step]) + (0.0 if terminals[step] else gamma * later)
        returns[step] = later
    return returns.astype(np.float32)
