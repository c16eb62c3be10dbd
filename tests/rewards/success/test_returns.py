"""Returns-to-go: success and failure by hand, the Bellman equation as a property, and refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rewards.success.returns import monte_carlo_returns
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import Episode, Source, Task


def returns(rewards: list[float], terminals: list[bool], gamma: float, failure: float = -1.0) -> NDArray[np.float32]:
    return monte_carlo_returns(np.array(rewards), np.array(terminals, dtype=bool), gamma=gamma, failure_reward=failure)


def test_a_success_by_hand() -> None:
    # Two payments before success: -1 - 0.5, then -1, then nothing.
    assert returns([-1, -1, 0], [False, False, True], 0.5).tolist() == [-1.5, -1.0, 0.0]


def test_a_failure_goes_on_for_ever() -> None:
    # -1 / (1 - 0.9) = -10 at every step, not the cut sums -2.71, -1.9 and -1.
    assert returns([-1, -1, -1], [False, False, False], 0.9).tolist() == [pytest.approx(-10, rel=1e-6)] * 3


def test_without_a_failure_reward_it_is_the_cut_sum() -> None:
    assert returns([-1, -1, -1], [False] * 3, 0.9, 0.0).tolist() == pytest.approx([-2.71, -1.9, -1.0])


def test_several_success_frames_and_a_failure_after_success() -> None:
    assert returns([-1, 0, 0, 0], [False, True, True, True], 0.5).tolist() == [-1, 0, 0, 0]
    # Success after the first payment; what follows was not saved by it.
    assert returns([-1, 0, -1], [False, True, False], 0.5).tolist() == [-1, 0, -2]


def test_an_empty_episode_has_no_returns() -> None:
    got = returns([], [], 0.9)
    assert got.shape == (0,)
    assert got.dtype == np.float32


@given(st.integers(0, 200), st.sampled_from([0.0, 0.5, 0.9, 0.97, 0.99]), st.sampled_from([-1.0, -3.0]))
def test_the_closed_forms(length: int, gamma: float, paid: float) -> None:
    success = returns([paid] * length + [0.0], [False] * length + [True], gamma, paid)
    left = np.arange(length, -1, -1)
    np.testing.assert_allclose(success, paid * (1 - gamma**left) / (1 - gamma), rtol=1e-5, atol=1e-6)
    failure = returns([paid] * length, [False] * length, gamma, paid)
    np.testing.assert_allclose(failure, np.full(length, paid / (1 - gamma)), rtol=1e-5)


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=1, max_size=40),
    st.floats(0, 0.99),
    st.floats(-2, 0),
)
def test_the_bellman_equation_and_the_bounds(steps: list[tuple[float, bool]], gamma: float, failure: float) -> None:
    rewards, terminals = [r for r, _ in steps], [t for _, t in steps]
    got = returns(rewards, terminals, gamma, failure).astype(np.float64)
    later = np.append(got[1:], failure / (1 - gamma))
    np.testing.assert_allclose(got, np.array(rewards) + gamma * later * ~np.array(terminals), rtol=1e-5, atol=1e-4)
    low, high = min([*rewards, failure, 0.0]), max([*rewards, failure, 0.0])
    assert (got >= low / (1 - gamma) - 1e-3).all() and (got <= high / (1 - gamma) + 1e-3).all()


@pytest.mark.parametrize(
    ("rewards", "terminals", "gamma", "message"),
    [
        ([-1.0], [True], 1.0, "gamma"),
        ([-1.0], [True], -0.1, "gamma"),
        ([-1.0, 0.0], [True], 0.9, "shapes|both be"),
        ([float("nan")], [True], 0.9, "finite"),
    ],
)
def test_refusals(rewards: list[float], terminals: list[bool], gamma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        returns(rewards, terminals, gamma)


def labelled(steps: int, **changes: Any) -> LabelledEpisode:
    episode = Episode(
        id="e",
        task=Task("t", "do it"),
        observations={"state": np.zeros((steps + 1, 2), np.float32)},
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps, np.float32),
        success=np.zeros(steps, bool),
        detected=np.full(steps, np.nan, np.float32),
        terminated=False,
        truncated=True,
        source=Source.POLICY,
    )
    arrays: dict[str, Any] = {
        "rewards": np.full(steps, -1, np.float32),
        "terminals": np.zeros(steps, bool),
        "mc_returns": np.full(steps, -10, np.float32),
    }
    return LabelledEpisode(episode, **(arrays | changes))


def test_a_labelled_episode_has_one_label_for_each_step() -> None:
    assert len(labelled(3)) == 3
    with pytest.raises(ValueError, match=r"mc_returns of episode 'e' must have shape \(3,\), got \(4,\)"):
        labelled(3, mc_returns=np.zeros(4, np.float32))
