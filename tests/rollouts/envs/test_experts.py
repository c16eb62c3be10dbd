"""Scripted policies: what experts do, how others fail, and that seeds fix both."""

from functools import cache
from typing import get_args

import numpy as np
import pytest

from rollouts.envs.api import EnvError, SceneEnv
from rollouts.envs.experts import Failing, Style, StyledPolicy, draw_style, expert, failing
from rollouts.envs.metaworld import MetaWorldScene
from rollouts.envs.point import TASKS, PointScene
from rollouts.envs.rollout import Acting, from_hard_resets
from rollouts.envs.types import STATE, Action, Episode, Observation, Policy, Task

KINDS = get_args(Failing)


@cache
def scene(task: str) -> SceneEnv:
    return PointScene() if task in ("there", "back") else MetaWorldScene("window")


def episodes(policy: Policy, task: str, count: int, seed: int = 0) -> list[Episode]:
    return from_hard_resets(Acting(scene(task), policy), count, 60, seed, [task])


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("task", [t.name for t in TASKS])
def test_the_point_expert_always_succeeds(task: str, noise: float) -> None:
    assert all(e.succeeded for e in episodes(expert(task, noise), task, 20))


@pytest.mark.parametrize("task", ["there", "window-open"])
@pytest.mark.parametrize("kind", KINDS)
def test_failures_fail_mostly(kind: Failing, task: str) -> None:
    attempts = episodes(failing(kind, task, noise=0.1), task, 10)
    assert sum(e.succeeded for e in attempts) <= 3
    assert len({e.actions.tobytes() for e in attempts}) == 10


@pytest.mark.parametrize("task", ["there", "window-open"])
def test_a_seed_fixes_what_is_done(task: str) -> None:
    for make in (lambda: expert(task, 0.2), *(lambda k=k: failing(k, task, 0.2) for k in KINDS)):  # type: ignore[misc]
        first, again, other = (episodes(make(), task, 1, seed)[0] for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.actions, again.actions)
        assert first.actions.shape != other.actions.shape or not np.array_equal(first.actions, other.actions)


def test_actions_are_those_of_the_script_with_noise_of_that_size() -> None:
    observation = PointScene().reset(seed=0)[0]
    clean, noisy = expert("there"), expert("there", 0.05)
    right_on = {STATE: observation[STATE] * 0}
    noisy.reset(0)
    draws = np.array([noisy.act(right_on, TASKS[0]) for _ in range(400)])
    np.testing.assert_array_equal(clean.act(right_on, TASKS[0]), 0)
    assert abs(draws.std() - 0.05) < 0.005


def test_one_who_stops_holds_the_gripper_and_moves_no_more() -> None:
    env = MetaWorldScene("window")
    policy = failing("stop", "window-open")
    policy.reset(3)
    observation, _ = env.reset(seed=0)
    actions = [policy.act(observation, env.tasks[0]) for _ in range(20)]
    assert np.abs(actions[0][:3]).max() > 0
    assert [a.tolist() for a in actions[10:]] == [[0, 0, 0, float(actions[0][3])]] * 10


def test_tasks_without_a_script_are_refused() -> None:
    with pytest.raises(EnvError, match="no script for the task 'fly'"):
        expert("fly")
    observation = MetaWorldScene("window").reset(seed=0)[0]
    with pytest.raises(EnvError, match="knows 'window-open', not 'there'"):
        expert("window-open").act(observation, Task("there", ""))


def test_a_style_is_added_to_the_script_and_leaves_the_gripper_alone() -> None:
    class Fixed:
        def reset(self, seed: int) -> None:
            pass

        def act(self, observation: Observation, task: Task) -> Action:
            return np.array([0.8, -0.4, 0.0, 0.6], np.float32)

    quiet = StyledPolicy(Fixed(), Style(pace=0.5, lean=(0.1, -0.9, 0.0), noise=0.0))
    np.testing.assert_allclose(quiet.act({}, TASKS[0]), [0.5, -1.0, 0.0, 0.6], atol=1e-7)
    shaky = StyledPolicy(Fixed(), Style(pace=0.0, lean=(0.0, 0.0, 0.0), noise=0.05))
    shaky.reset(3)
    draws = np.array([shaky.act({}, TASKS[0]) for _ in range(400)])
    assert abs(draws[:, :3].std() - 0.05) < 0.005
    np.testing.assert_array_equal(draws[:, 3], np.float32(0.6))
    shaky.reset(3)
    np.testing.assert_array_equal(shaky.act({}, TASKS[0]), draws[0])


def test_styles_are_drawn_by_seed_and_some_succeed_and_some_fail() -> None:
    assert draw_style("there", 4) == draw_style("there", 4) != draw_style("there", 5)
    assert (len(draw_style("there", 0).lean), len(draw_style("window-open", 0).lean)) == (2, 3)
    rates = [
        np.mean([e.succeeded for e in episodes(StyledPolicy(expert("there"), draw_style("there", seed)), "there", 5)])
        for seed in range(20)
    ]
    assert min(rates) < 0.3 and max(rates) == 1
