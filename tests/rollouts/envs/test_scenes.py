"""What every scene promises, then what is each one's own."""

import io
import sys
import types
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rollouts.envs.api import EnvError, SceneEnv, derive_seed, named
from rollouts.envs.gym_env import GymScene
from rollouts.envs.make import make_env
from rollouts.envs.point import PointScene
from rollouts.envs.types import IMAGE, STATE

SCENES: dict[str, dict[str, Any]] = {
    "point": {"image": True, "image_size": 16},
    "metaworld:window": {"image": True},
    "metaworld:door-lock": {"repeat": 2},
    "gym:InvertedPendulum-v5": {"success": "never"},
}
PAIRED = [name for name in SCENES if not name.startswith("gym:")]


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest) -> Iterator[SceneEnv]:
    env = make_env(request.param, **SCENES[request.param])
    yield env
    env.close()


@pytest.fixture(scope="module", params=PAIRED)
def paired(request: pytest.FixtureRequest) -> Iterator[SceneEnv]:
    env = make_env(request.param, **SCENES[request.param])
    yield env
    env.close()


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def walk(env: SceneEnv, steps: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    size = env.action_space.shape[0]
    return [env.step(rng.uniform(-1, 1, size).astype(np.float32)) for _ in range(steps)]


def test_everything_seen_fits_the_spaces_and_info_is_whole(scene: SceneEnv) -> None:
    task = scene.tasks[0].name
    seen = [scene.reset(seed=1), scene.home(), scene.switch(task)]
    seen += [(observation, info) for observation, *_, info in walk(scene, 3)]
    for observation, info in seen:
        assert scene.observation_space.contains(observation)
        assert (info["task"], type(info["success"])) == (task, bool)


@pytest.mark.filterwarnings("ignore:.*infinity")
def test_gymnasium_finds_nothing_wrong(scene: SceneEnv) -> None:
    assert isinstance(scene, gymnasium.Env)
    check_env(scene, skip_render_check=True)


def test_a_seed_fixes_the_scene_and_another_changes_it(scene: SceneEnv) -> None:
    first = [scene.reset(seed=3)[0], *(o for o, *_ in walk(scene, 4))]
    again = [scene.reset(seed=3)[0], *(o for o, *_ in walk(scene, 4))]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(first[0], scene.reset(seed=4)[0])


def test_without_a_seed_scenes_differ(scene: SceneEnv) -> None:
    scene.reset(seed=3)
    assert not same(scene.reset()[0], scene.reset()[0])


def test_what_was_shown_stays_as_it_was(scene: SceneEnv) -> None:
    observation, _ = scene.reset(seed=1)
    kept = {key: value.copy() for key, value in observation.items()}
    walk(scene, 3)
    assert same(observation, kept)


def test_a_task_of_another_scene_is_refused(scene: SceneEnv) -> None:
    with pytest.raises(EnvError, match="no task 'fly'"):
        scene.switch("fly")
    with pytest.raises(EnvError, match="no task 'fly'"):
        scene.reset(options={"task": "fly"})


def test_people_get_a_picture(scene: SceneEnv) -> None:
    scene.reset(seed=1)
    picture = scene.render()
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert picture.std() > 5


def test_a_step_pays_until_the_task_is_done_and_ends_nothing(paired: SceneEnv) -> None:
    paired.reset(seed=1)
    for _, reward, terminated, truncated, info in walk(paired, 5):
        assert (reward, terminated, truncated) == (0.0 if info["success"] else -1.0, False, False)


def test_no_task_is_done_where_it_begins(paired: SceneEnv) -> None:
    for task in paired.tasks:
        for seed in range(5):
            assert not paired.reset(seed=seed, options={"task": task.name})[1]["success"]


def test_switching_moves_nothing(paired: SceneEnv) -> None:
    first, second = (task.name for task in paired.tasks)
    paired.reset(seed=2, options={"task": first})
    walk(paired, 5)
    before = paired.state_dict()
    _, info = paired.switch(second)
    after = paired.state_dict()
    assert info["task"] == after.pop("task") == second
    assert before.pop("task") == first
    assert before == after


def test_what_a_robot_measures_on_itself_knows_neither_task_nor_object(paired: SceneEnv) -> None:
    columns = list(paired.proprio)
    one, other = (paired.reset(seed=seed)[0][STATE] for seed in (3, 4))
    switched = paired.switch(paired.tasks[1].name)[0][STATE]
    assert columns and len(columns) < len(one)
    np.testing.assert_array_equal(switched[columns], other[columns])
    assert not np.array_equal(np.delete(switched, columns), np.delete(other, columns))
    walk(paired, 5, seed=1)
    moved = paired.home()[0][STATE]
    assert not np.array_equal(np.delete(one, columns), np.delete(other, columns)), "another place of the object"
    np.testing.assert_allclose(moved[columns], other[columns], atol=0.1)


def test_going_home_moves_the_hand_and_leaves_the_object(paired: SceneEnv) -> None:
    start, _ = paired.reset(seed=2)
    hand = len([column for column in paired.proprio if column < 3])
    walk(paired, 15, seed=5)
    away = paired.step(np.zeros(paired.action_space.shape[0], np.float32))[0][STATE]
    home = paired.home()[0][STATE]
    # The object follows the hand in a state of either scene: see their docstrings.
    place = slice(2, 4) if hand == 2 else slice(4, 7)
    assert np.linalg.norm(away[:hand] - start[STATE][:hand]) > 0.03
    assert np.linalg.norm(home[:hand] - start[STATE][:hand]) < 0.1 * (hand == 2) + 0.01
    np.testing.assert_allclose(home[place], away[place], atol=5e-3)


def test_a_loaded_state_has_the_same_future_to_the_bit(scene: SceneEnv, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["scene"]
    scene.reset(seed=6)
    if name in PAIRED:
        walk(scene, 5)
        scene.switch(scene.tasks[1].name)
    file = io.BytesIO()
    torch.save(scene.state_dict(), file)
    file.seek(0)
    other = make_env(name, **SCENES[name])
    other.load_state_dict(torch.load(file, weights_only=True))
    try:
        if name in PAIRED:
            assert same(other.home()[0], scene.home()[0])
            for one, two in zip(walk(scene, 6), walk(other, 6), strict=True):
                assert same(one[0], two[0]) and one[1] == two[1]
        # The generator is part of the state: an unseeded reset draws the same scene.
        one, two = scene.reset(seed=None if name in PAIRED else 1), other.reset(seed=None if name in PAIRED else 1)
        assert same(one[0], two[0])
    finally:
        other.close()


def test_pictures_only_where_asked_for() -> None:
    assert IMAGE not in PointScene().reset(seed=0)[0]
    assert PointScene(image=True, image_size=20).reset(seed=0)[0][IMAGE].shape == (20, 20, 3)


def test_the_block_goes_with_the_hand_that_is_near_it() -> None:
    env = PointScene()
    env.reset(seed=0)
    state = env.state_dict() | {"hand": [0.0, 0.0], "block": [0.05, 0.0]}
    env.load_state_dict(state)
    observation, reward, *_ = env.step(np.array([1.0, 0.0], np.float32))
    # 0.05 apart: the block moves by the same 0.1.  Goal of "there": x = 0.5.
    np.testing.assert_allclose(observation[STATE], [0.1, 0, 0.15, 0, 0.05, 0, 0.35, 0], atol=1e-6)
    assert reward == -1.0
    env.load_state_dict(state | {"hand": [-0.3, 0.0]})
    np.testing.assert_allclose(env.step(np.array([1.0, 0.0], np.float32))[0][STATE][2:4], [0.05, 0], atol=1e-6)
    env.load_state_dict(state | {"block": [0.38, 0.0], "hand": [0.38, 0.0]})
    _, reward, *_, info = env.step(np.array([0.5, 0.0], np.float32))
    # 0.43 is within 0.1 of 0.5.
    assert (reward, info["success"]) == (0.0, True)


def test_a_point_picture_has_hand_and_block_where_they_are() -> None:
    env = PointScene(image=True, image_size=21)
    env.reset(seed=0)
    env.load_state_dict(env.state_dict() | {"hand": [0.0, 1.0], "block": [1.0, 0.0]})
    image = env.switch("there")[0][IMAGE]
    # x in [-1, 1] is column 0 to 20, y = 1 row 0.
    assert image[0, 10].tolist() == [200, 40, 40]
    assert image[10, 20].tolist() == [40, 60, 200]
    assert image[20, 0].tolist() == [230, 230, 230]


def test_actions_reach_a_gymnasium_environment_in_its_own_units() -> None:
    env = GymScene("Pendulum-v1", "never")
    env.reset(seed=0)
    own = gymnasium.make("Pendulum-v1")
    own.reset(seed=0)
    # Pendulum's torque is within [-2, 2].
    observation, reward, *_ = env.step(np.array([0.25], np.float32))
    expected, paid, *_ = own.step(np.array([0.5], np.float32))
    np.testing.assert_array_equal(observation[STATE], expected)
    assert reward == paid


class Told(gymnasium.Env[dict[str, Any], Any]):
    """Succeeds in its third step, and says so in one way or another."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(self, key: str | None = "is_success", discrete: bool = False, **_: Any) -> None:
        self.observation_space = gymnasium.spaces.Dict(
            {"a": gymnasium.spaces.Box(-1, 1, (2, 2)), "b": gymnasium.spaces.Discrete(3)}
        )
        box = gymnasium.spaces.Box(np.array([0, -4], np.float32), np.array([1, 4], np.float32))
        self.action_space = gymnasium.spaces.Discrete(2) if discrete else box
        self.key = key

    def reset(self, **_: Any) -> Any:
        self.at = 0
        return {"a": np.zeros((2, 2), np.float32), "b": 1}, {}

    def step(self, action: Any) -> Any:
        self.at += 1
        done = self.at == 3
        info = {self.key: float(done)} if self.key else {}
        return {"a": np.full((2, 2), 0.5, np.float32), "b": 2}, 1.5, done, False, info


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    gymnasium.register("Told-v0", Told, disable_env_checker=True)


def test_success_is_read_as_the_recipe_says() -> None:
    zero = np.zeros(2, np.float32)
    for success, truths in (("info", [0, 0, 1]), ("termination", [0, 0, 1]), ("never", [0, 0, 0])):
        env = make_env("gym:Told-v0", success=success, instruction="do it")  # type: ignore[arg-type]
        observation, _ = env.reset()
        assert env.tasks[0].instruction == "do it"
        # Dict spaces flatten in the order of their keys; Discrete(3) is one-hot.
        assert observation[STATE].tolist() == [0, 0, 0, 0, 0, 1, 0]
        steps = [env.step(zero) for _ in range(3)]
        assert [s[4]["success"] for s in steps] == [bool(t) for t in truths]
        assert [s[2] for s in steps] == [False, False, True]


def test_an_environment_that_does_not_tell_its_success_is_refused() -> None:
    env = make_env("gym:Pendulum-v1")
    env.reset(seed=0)
    with pytest.raises(EnvError, match="set success to 'termination'"):
        env.step(np.zeros(1, np.float32))


def test_a_gymnasium_environment_is_reset_after_each_episode() -> None:
    env = make_env("gym:Pendulum-v1", success="never")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    with pytest.raises(EnvError, match="set reset_every_episodes to 1"):
        env.home()


def test_discrete_actions_are_refused() -> None:
    gymnasium.register("Chosen-v0", Told, kwargs={"discrete": True}, disable_env_checker=True)
    with pytest.raises(EnvError, match="finite bounds"):
        make_env("gym:Chosen-v0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("window", "unknown environment 'window'; there are metaworld:<pair>, point and gym:<id>"),
        ("gym:", "unknown environment 'gym:'"),
        ("point:x", "unknown environment 'point:x'"),
        ("metaworld:faucet", "no pair metaworld:faucet; there are window, drawer, door, door-lock, handle"),
        ("gym:NoSuch-v0", "gym:NoSuch-v0 cannot be made"),
    ],
)
def test_unknown_names_are_answered_in_one_line(name: str, message: str) -> None:
    with pytest.raises(EnvError, match=message) as caught:
        make_env(name)
    assert "\n" not in str(caught.value)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rollouts.envs.point", None)
    with pytest.raises(EnvError, match=r"pip install 'polestar-align\[robot\]'"):
        make_env("point")


def test_a_machine_that_cannot_draw_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rollouts.envs.metaworld")
    monkeypatch.setitem(sys.modules, "rollouts.envs.metaworld", module)
    with pytest.raises(EnvError, match=r"cannot draw here .* install libegl1"):
        make_env("metaworld:window")


def test_seeds_differ_by_every_part_and_keep_parts_apart() -> None:
    seeds = [derive_seed(*parts) for parts in ((1, "a"), (2, "a"), (1, "b"), (1, "a", 0), ("1a",), (11, "a"))]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(1, "a") == seeds[0]
    assert all(0 <= s < 2**63 for s in seeds)


def test_tasks_are_found_by_name() -> None:
    tasks = PointScene().tasks
    assert named(tasks, "back") is tasks[1]
