"""Meta-World pairs: experts alternate without resets, seeds seed, and pictures hide the goal and stand upright."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rollouts.envs.api import EnvError
from rollouts.envs.experts import expert
from rollouts.envs.make import SIMULATOR_SECONDS, decision_rate
from rollouts.envs.metaworld import PAIRS, MetaWorldScene
from rollouts.envs.reset_free import ResetFreeConfig
from rollouts.envs.rollout import Acting, chain, from_hard_resets
from rollouts.envs.types import IMAGE, STATE, Action, Observation, Task


class ByTask:
    """The expert of whatever the task is."""

    def __init__(self, tasks: tuple[Task, ...], noise: float) -> None:
        self._experts = {task.name: expert(task.name, noise) for task in tasks}

    def reset(self, seed: int) -> None:
        for one in self._experts.values():
            one.reset(seed)

    def act(self, observation: Observation, task: Task) -> Action:
        return self._experts[task.name].act(observation, task)


@pytest.mark.parametrize("homing", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_experts_do_and_undo_without_a_reset(pair: str, homing: bool) -> None:
    env = MetaWorldScene(pair)
    acting = Acting(env, ByTask(env.tasks, noise=0.0))
    episodes = chain(acting, lives=2, episodes=6, config=ResetFreeConfig(max_steps=80, homing=homing), seed=1)
    assert [e.succeeded for e in episodes] == [True] * 12
    assert [e.metadata["hard_reset"] for e in episodes] == [n == 0 for n in range(6)] * 2
    assert not any(e.metadata["skipped"] or e.metadata["instant"] for e in episodes)
    names = [task.name for task in env.tasks]
    assert [e.task.name for e in episodes] == names * 3 + names[::-1] * 3


def test_experts_with_noise_succeed_from_hard_resets() -> None:
    env = MetaWorldScene("window")
    episodes = from_hard_resets(Acting(env, ByTask(env.tasks, noise=0.1)), episodes=3, max_steps=80, seed=0)
    assert [e.succeeded for e in episodes] == [True] * 6
    assert len({float(e.observations[STATE][0, 10]) for e in episodes}) == 6


@pytest.mark.parametrize("pair", PAIRS)
def test_both_tasks_of_a_seed_stand_at_the_same_place(pair: str) -> None:
    env = MetaWorldScene(pair)
    layouts = []
    for task in env.tasks:
        env.reset(seed=5, options={"task": task.name})
        layouts.append(env.state_dict()["layout"])
    assert layouts[0] == layouts[1]
    env.reset(seed=6)
    assert env.state_dict()["layout"] != layouts[0]


def test_the_state_is_what_its_description_says() -> None:
    env = MetaWorldScene("drawer")
    state = env.reset(seed=0)[0][STATE].astype(np.float64)
    np.testing.assert_allclose(state[:3], [0, 0.6, 0.2], atol=0.02)
    assert 0.9 < state[3] <= 1.0
    np.testing.assert_allclose(state[7:10], state[4:7] - state[:3], atol=1e-6)
    np.testing.assert_allclose(state[13:16], state[10:13] - state[4:7], atol=1e-6)
    # The drawer opens by 20 cm towards the robot.
    np.testing.assert_allclose(state[13:16], [0, -0.19, 0], atol=0.02)
    np.testing.assert_allclose(state[16:19], [0, 0.6, 0.2] - state[:3], atol=1e-6)


def test_an_action_moves_the_hand_that_way_and_closes_the_gripper() -> None:
    env = MetaWorldScene("window")
    before = env.reset(seed=0)[0][STATE]
    for _ in range(5):
        after, *_ = env.step(np.array([0.5, 0, 0, 1], np.float32))
    state = after[STATE]
    # Five decisions of three steps of half a centimetre, less what the hand lags behind.
    assert 0.04 < state[0] - before[0] < 0.08
    assert abs(state[2] - before[2]) < 0.02
    assert state[3] < before[3] - 0.2
    # Where the hand was told to be: 7.5 cm from where it began.
    assert abs(state[0] + state[16] - 0.075) < 1e-6


def test_repeating_an_action_is_taking_it_again() -> None:
    action = np.array([0.4, 0.2, -0.1, 1], np.float32)
    seen = []
    for repeat, steps in ((4, 1), (1, 4)):
        env = MetaWorldScene("window", repeat=repeat)
        env.reset(seed=0)
        for _ in range(steps):
            observation = env.step(action)[0]
        seen.append(observation[STATE])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)


def test_a_decision_lasts_as_long_as_the_simulator_says() -> None:
    env = MetaWorldScene("window", repeat=4)
    env.reset(seed=0)
    before = env._data.time
    env.step(np.zeros(4, np.float32))
    assert env._data.time - before == pytest.approx(4 * SIMULATOR_SECONDS)
    assert decision_rate("metaworld:window", 4) == pytest.approx(20)
    assert decision_rate("point") is None and decision_rate("gym:FetchReach-v4") is None


def test_a_robot_that_practises_is_not_sent_home_after_500_steps() -> None:
    env = MetaWorldScene("window")
    env.reset(seed=0)
    for _ in range(180):
        truncated = env.step(np.zeros(4, np.float32))[3]
    assert not truncated


def test_the_goal_is_not_in_the_picture() -> None:
    env = MetaWorldScene("window", image=True)
    image = env.reset(seed=0)[0][IMAGE]
    fine = env.render()
    env._model.site("goal").pos = [0.0, 0.6, 0.2]
    np.testing.assert_array_equal(env.switch("window-open")[0][IMAGE], image)
    np.testing.assert_array_equal(env.switch("window-close")[0][IMAGE], image)
    np.testing.assert_array_equal(env.render(), fine)
    env.close()


def finger_row(image: NDArray[np.uint8]) -> float:
    """The mean row of the left finger's tip, the one thing that is cyan."""
    red, green, blue = (image[..., i].astype(int) for i in range(3))
    rows, _ = np.nonzero((green > red + 60) & (blue > red + 60))
    assert len(rows)
    return float(rows.mean())


@pytest.mark.parametrize("camera", ["front", "corner", "corner2", "corner3"])
def test_up_is_up(camera: str) -> None:
    env = MetaWorldScene("drawer", image=True, image_size=200, camera=camera)
    low = env.reset(seed=0)[0][IMAGE]
    for _ in range(5):
        high = env.step(np.array([0, 0, 1, 0], np.float32))[0][IMAGE]
    assert finger_row(high) < finger_row(low) - 2
    env.close()


def test_the_picture_for_people_is_larger_and_has_the_arm() -> None:
    env = MetaWorldScene("window", image=True, render_size=168)
    small = env.reset(seed=0)[0][IMAGE]
    large = env.render()
    assert (small.shape, large.shape) == ((84, 84, 3), (168, 168, 3))

    def red(image: NDArray[np.uint8]) -> float:
        return float(((image[..., 0] > 100) & (image[..., 1] < 60) & (image[..., 2] < 60)).mean())

    assert red(large) > 3 * red(small)
    # One camera does not disturb the other.
    np.testing.assert_array_equal(env.switch("window-open")[0][IMAGE], small)
    env.close()
    env.close()
    np.testing.assert_array_equal(env.switch("window-open")[0][IMAGE], small)
    env.close()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"repeat": 0}, "at least once"), ({"camera": "side"}, "no camera 'side'")]
)
def test_settings_without_a_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        MetaWorldScene("window", **arguments)


def test_nothing_is_done_before_the_first_reset() -> None:
    env = MetaWorldScene("window")
    for call in (env.home, env.render, env.state_dict, lambda: env.step(np.zeros(4, np.float32))):
        with pytest.raises(EnvError, match="reset the scene"):
            call()


def test_a_scene_that_is_left_open_ends_in_silence() -> None:
    program = """
import weakref

class Early: ...

early = Early()
weakref.finalize(early, lambda: None)  # as a temporary folder makes one, long before there is a scene
from rollouts.envs.make import make_env
env = make_env("metaworld:window", image=True)
env.reset(seed=0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
