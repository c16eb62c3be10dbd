"""The point of Cal-QL on a chain that can be solved exactly: its values stay above the behaviour's, CQL's do not.

States 0 to 5 lie in a row and the goal is beyond the last. Left, stay or right; every step pays -1, and the one that
reaches the goal pays 0 and ends the task. The behaviour stumbles to the right with probability 0.5, to the left with
0.3. The policy that is evaluated always goes right, which is optimal. Its values are learned by the losses that the
robot learners use, on a table of Q-values; the "drawn" action of the policy is its only one, with probability 1, so
that the logsumexp of one term is the expectation of the paper's equation 5.1.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.losses.actor_critic import conservative_gap, td_loss, td_target
from rewards.success.returns import monte_carlo_returns

STATES, GAMMA = 6, 0.9
MOVES = (-1, 0, 1)
RIGHT = 2
BEHAVIOUR = np.array([0.3, 0.2, 0.5])


def step(state: int, action: int) -> tuple[int, float, bool]:
    following = max(0, state + MOVES[action])
    return (state, 0.0, True) if following == STATES else (following, -1.0, False)


def exact_values(policy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of a policy [S, A], by solving the Bellman equation."""
    matrix, paid = np.eye(STATES), np.zeros(STATES)
    for state in range(STATES):
        for action in range(3):
            following, reward, done = step(state, action)
            paid[state] += policy[state, action] * reward
            if not done:
                matrix[state, following] -= GAMMA * policy[state, action]
    return np.linalg.solve(matrix, paid)


OPTIMAL = exact_values(np.eye(3)[np.full(STATES, RIGHT)])
MEDIOCRE = exact_values(np.tile(BEHAVIOUR, (STATES, 1)))


class Data:
    """Transitions with a weight each, and the return that calibrates them."""

    def __init__(self, rows: list[tuple[int, int, float, float]]) -> None:
        self.states = torch.tensor([r[0] for r in rows])
        self.actions = torch.tensor([r[1] for r in rows])
        self.weights = torch.tensor([r[2] for r in rows], dtype=torch.float64)
        self.returns = torch.tensor([r[3] for r in rows], dtype=torch.float64)
        steps = [step(r[0], r[1]) for r in rows]
        self.following = torch.tensor([s[0] for s in steps])
        self.rewards = torch.tensor([s[1] for s in steps], dtype=torch.float64)
        self.discounts = torch.tensor([0.0 if s[2] else GAMMA for s in steps], dtype=torch.float64)


def whole() -> Data:
    """Every state and action, as often as the behaviour takes it there, with the behaviour's exact values."""
    return Data([(s, a, BEHAVIOUR[a], MEDIOCRE[s]) for s in range(STATES) for a in range(3)])


def evaluated(data: Data, alpha: float, *, calibrate: bool, updates: int = 800) -> Tensor:
    """The values of going right, [S], by gradient descent with a shrinking step."""
    table = torch.full((STATES, 3), -5.0, dtype=torch.float64, requires_grad=True)
    optim = torch.optim.SGD([table], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda update: 0.5 * (1 - update / updates) ** 2)
    for _ in range(updates):
        q_data = table[data.states, data.actions].unsqueeze(0)
        q_policy = table[data.states, RIGHT].view(1, -1, 1)
        target = td_target(data.rewards, data.discounts, table[data.following, RIGHT].view(1, -1, 1))
        gap = conservative_gap(
            q_data,
            q_policy[..., :0],
            q_policy,
            torch.zeros(len(data.states), 1, dtype=torch.float64),
            action_size=1,
            mc_returns=data.returns if calibrate else None,
        ).gap
        loss = (data.weights * (td_loss(q_data, target) + alpha * gap)).sum()
        loss.backward()
        optim.step()
        optim.zero_grad()
        schedule.step()
    return table.detach()[:, RIGHT]


def test_the_exact_values() -> None:
    # k steps before the last: -(1 - 0.9^k) / 0.1.
    np.testing.assert_allclose(OPTIMAL, [-(1 - GAMMA**k) / 0.1 for k in range(5, -1, -1)])
    assert (MEDIOCRE < OPTIMAL - 0.5).all()


def test_without_pessimism_the_values_are_the_optimum() -> None:
    for calibrate in (False, True):
        values = evaluated(whole(), 0.0, calibrate=calibrate)
        np.testing.assert_allclose(values.numpy(), OPTIMAL, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0])
def test_cql_pushes_the_values_down_by_as_much_as_its_theorem_says(alpha: float) -> None:
    # Where the gradient is zero, Q = r + gamma Q' - alpha / 2 (1 / mu - 1): arXiv 2006.04779, equation 3.
    pessimism = alpha / 2 * (1 / BEHAVIOUR[RIGHT] - 1)
    expected = [0.0] * STATES
    for state in range(STATES - 1, -1, -1):
        later = -1 + GAMMA * expected[state + 1] if state < STATES - 1 else 0.0
        expected[state] = later - pessimism
    values = evaluated(whole(), alpha, calibrate=False)
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-2)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0, 20.0])
def test_calibrated_values_lie_between_the_behaviour_and_the_optimum(alpha: float) -> None:
    values = evaluated(whole(), alpha, calibrate=True).numpy()
    assert (values >= MEDIOCRE - 0.02).all()
    assert (values <= OPTIMAL + 0.02).all()


@pytest.mark.parametrize("alpha", [2.0, 5.0, 20.0])
def test_cql_s_values_fall_below_the_behaviour(alpha: float) -> None:
    values = evaluated(whole(), alpha, calibrate=False).numpy()
    assert values[0] < MEDIOCRE[0] - 0.25 * alpha


def sampled(seed: int = 0, episodes: int = 40, limit: int = 12) -> Data:
    """Episodes of the behaviour, some cut before the goal, without the steps to the right out of state 4."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, float, float]] = []
    for _ in range(episodes):
        state, path = int(rng.integers(STATES - 2)), []
        done = False
        while not done and len(path) < limit:
            action = int(rng.choice(3, p=BEHAVIOUR))
            following, reward, done = step(state, action)
            path.append((state, action, reward, done))
            state = following
        returns = monte_carlo_returns(
            np.array([p[2] for p in path]), np.array([p[3] for p in path]), gamma=GAMMA, failure_reward=-1
        )
        rows += [(s, a, 1.0, float(g)) for (s, a, _, _), g in zip(path, returns, strict=True) if (s, a) != (4, RIGHT)]
    total = len(rows)
    return Data([(s, a, STATES * w / total, g) for s, a, w, g in rows])


def test_an_action_that_no_data_shows_falls_without_end_in_cql_and_to_the_lowest_return_in_cal_ql() -> None:
    data = sampled()
    assert not ((data.states == 4) & (data.actions == RIGHT)).any()
    # Returns of single episodes calibrate: where nothing pulls up, the lowest seen in a state is where pushing ends.
    lowest = np.array([data.returns[data.states == s].min().item() for s in range(STATES)])
    assert lowest.min() == pytest.approx(-10)
    short, long = (evaluated(data, 5.0, calibrate=False, updates=n).numpy() for n in (200, 800))
    assert long[4] < short[4] - 10 < lowest[4] - 10
    calibrated = evaluated(data, 5.0, calibrate=True).numpy()
    # Half a unit for the last stride: nothing pulls an unseen action back up.
    assert (calibrated >= lowest - 0.5).all()
