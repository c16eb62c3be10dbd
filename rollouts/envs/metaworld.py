"""Pairs of Meta-World tasks in one scene, each of which undoes the other: a robot that practises without resets."""

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from rollouts.envs.api import EnvError, named
from rollouts.envs.rendering import Camera, View, set_apart
from rollouts.envs.types import IMAGE, STATE, Action, Task

STATE_SIZE = 19
ARM_JOINTS = (*(f"right_j{i}" for i in range(7)), "r_close", "l_close")
ARM_BODIES = ("right_arm", "right_l", "torso", "head", "screen", "pedestal", "controller_box")
SETTLE = 10
"""Simulator steps (12.5 ms each) for things to come to rest once the arm is out of the way."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tasks of one scene, what a policy is told, and the point that the camera looks at (metres)."""

    forward: Task
    backward: Task
    lookat: tuple[float, float, float]


PAIRS = {
    "window": Pair(
        Task("window-open", "slide the window open"),
        Task("window-close", "slide the window closed"),
        (0.05, 0.65, 0.12),
    ),
    "drawer": Pair(
        Task("drawer-open", "pull the drawer open"), Task("drawer-close", "push the drawer closed"), (0.0, 0.68, 0.08)
    ),
    "door": Pair(
        Task("door-open", "open the door of the safe"),
        Task("door-close", "close the door of the safe"),
        (0.0, 0.65, 0.12),
    ),
    "door-lock": Pair(
        Task("door-lock", "turn the lock of the safe down"),
        Task("door-unlock", "turn the lock of the safe up"),
        (0.05, 0.65, 0.12),
    ),
    "handle": Pair(
        Task("handle-press", "press the handle down"), Task("handle-pull", "pull the handle up"), (0.0, 0.65, 0.1)
    ),
}


class MetaWorldScene(gymnasium.Env[Any, Action]):
    """Implements :class:`rollouts.envs.api.SceneEnv` for a pair of Meta-World v3 tasks (arXiv 1910.10897).

    Both tasks are objects of Meta-World's own classes that share one MuJoCo model and one set of data: switching moves
    nothing because there is nothing to copy (cf. EARL, arXiv 2112.09605, whose pairs need a simulator that no longer
    installs). An action [4] moves the hand by a centimetre a simulator step (x, y, z) and closes or opens the gripper;
    it is repeated ``repeat`` times. A step pays -1, and 0 when it leaves the task done; success ends nothing.

    "state" [19], metres, of the current task:
    0-2 hand · 3 gripper opening, 0 to 1 · 4-6 the point of the object that the task watches · 7-9 that point seen from
    the hand · 10-12 where it has to go · 13-15 that place seen from the point · 16-18 where the hand was told to be,
    seen from the hand: it follows with a lag, and pushing shows here (its velocity shows little but vibration).
    ``proprio`` are 0-3 and 16-18. "image" (only with ``image``): uint8, no arm and no goal in it.

    ``camera``: "front", ours, near the object and above it; or a name of Meta-World's ("corner2"…), turned upright.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012  (Gymnasium's own declaration)
    proprio = (0, 1, 2, 3, 16, 17, 18)

    def __init__(
        self,
        pair: str,
        *,
        image: bool = False,
        image_size: int = 84,
        repeat: int = 3,
        camera: str = "front",
        render_size: int = 480,
    ) -> None:
        if pair not in PAIRS:
            raise EnvError(f"no pair metaworld:{pair}; there are {', '.join(PAIRS)}")
        if repeat < 1:
            raise EnvError(f"an action is repeated at least once, not {repeat} times")
        self.tasks = (PAIRS[pair].forward, PAIRS[pair].backward)
        self.render_mode = "rgb_array"
        self._repeat, self._image_size, self._render_size = repeat, image_size if image else 0, render_size
        self._camera_name, self._lookat = camera, PAIRS[pair].lookat
        self._envs = {task.name: _meta_world(f"{task.name}-v3") for task in self.tasks}
        first = self._envs[self.tasks[0].name]
        self._model, self._data = first.model, first.data
        for env in self._envs.values():
            env.model, env.data, env.hand_init_pos = self._model, self._data, first.hand_init_pos
        self._layouts = first._random_reset_space
        self._arm = [int(self._model.joint(name).qposadr[0]) for name in ARM_JOINTS]
        set_apart(self._model, ARM_BODIES)
        if camera != "front" and camera not in {self._model.camera(i).name for i in range(self._model.ncam)}:
            raise EnvError(f"no camera {camera!r} in metaworld:{pair}; take front, or one of Meta-World's as corner2")

        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        boxes: dict[str, spaces.Space[Any]] = {STATE: spaces.Box(-np.inf, np.inf, (STATE_SIZE,), np.float32)}
        if image:
            boxes[IMAGE] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(boxes)
        self._task = self.tasks[0]
        self._layout: NDArray[np.float64] = np.zeros(0)
        self._home: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Where the object stands is drawn from the forward task's own range, whatever the task."""
        super().reset(seed=seed)
        self._set_up(
            named(self.tasks, (options or {}).get("task", self.tasks[0].name)),
            self.np_random.uniform(self._layouts.low, self._layouts.high),
        )
        return self._seen()

    def step(self, action: Action) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        env = self._current()
        unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        for _ in range(self._repeat):
            env.set_xyz_action(unit[:3])
            env.do_simulation([unit[3], -unit[3]], env.frame_skip)
        mujoco.mj_forward(self._model, self._data)
        observation, info = self._seen(unit)
        return observation, 0.0 if info["success"] else -1.0, False, False, info

    def switch(self, task: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        self._task = named(self.tasks, task)
        return self._seen()

    def home(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The arm is put where it starts, not driven: a straight drive would drag along what the hand is hooked to."""
        env, data = self._current(), self._data
        joints, mocap = self._home or (np.zeros(0), np.zeros(0))
        data.qpos[self._arm], data.mocap_pos[0] = joints, mocap
        data.qvel[[int(self._model.joint(name).dofadr[0]) for name in ARM_JOINTS]] = 0.0
        for _ in range(SETTLE):
            env.do_simulation([-1.0, 1.0], env.frame_skip)
        mujoco.mj_forward(self._model, data)
        return self._seen()

    def render(self) -> NDArray[np.uint8]:
        """[480, 480, 3] by default, with arm, shadows and reflections; still without the goal."""
        self._current()
        return self._fine_camera.frame()

    def close(self) -> None:
        for name in ("_fast_camera", "_fine_camera"):
            camera = self.__dict__.pop(name, None)
            if camera is not None:
                camera.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: where the object stands, MuJoCo's integration state, and the generator of layouts."""
        self._current()
        physics = np.empty(mujoco.mj_stateSize(self._model, _PHYSICS))
        mujoco.mj_getState(self._model, self._data, physics, _PHYSICS)
        return {
            "task": self._task.name,
            "layout": self._layout.tolist(),
            "physics": physics.tolist(),
            "rng": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A reset is a function of task and layout alone: it brings back targets, bodies' places and the arm's home.
        self._set_up(named(self.tasks, state["task"]), np.array(state["layout"]))
        mujoco.mj_setState(self._model, self._data, np.array(state["physics"]), _PHYSICS)
        mujoco.mj_forward(self._model, self._data)
        self.np_random.bit_generator.state = state["rng"]

    def _set_up(self, task: Task, layout: NDArray[np.float64]) -> None:
        """The scene as ``task`` begins.

        The backward task is reset first, for its target and its reference points, and the forward one after it, which
        also sets the arm's home: each moves the hand before it places the object, so that only what comes second finds
        the object in place, and does the same whatever stood there before.
        """
        self._task, self._layout = task, layout
        forward, backward = (self._envs[t.name] for t in self.tasks)
        for env in (backward, forward, *([backward] if task is self.tasks[1] else [])):
            env._last_rand_vec = layout
            mujoco.mj_resetData(self._model, self._data)
            env.reset_model()
            if env is forward:
                self._home = self._data.qpos[self._arm].copy(), self._data.mocap_pos[0].copy()
        mujoco.mj_forward(self._model, self._data)

    def _current(self) -> Any:
        if self._home is None:
            raise EnvError("reset the scene before anything else")
        return self._envs[self._task.name]

    def _seen(self, action: NDArray[np.float64] | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        env = self._current()
        raw = env._get_curr_obs_combined_no_goal()
        hand, opening, point, target, told = raw[:3], raw[3:4], raw[4:7], env._target_pos, self._data.mocap_pos[0]
        state = np.concatenate([hand, opening, point, point - hand, target, target - point, told - hand])
        observation: dict[str, NDArray[Any]] = {STATE: state.astype(np.float32)}
        if self._image_size:
            observation[IMAGE] = self._fast_camera.frame()
        # Meta-World judges by an observation of 39: now, before (which no judge looks at), and the target.
        judged = env.evaluate_state(np.concatenate([raw, raw, target]), np.zeros(4) if action is None else action)[1]
        return observation, {"success": bool(judged["success"]), "task": self._task.name}

    @cached_property
    def _fast_camera(self) -> Camera:
        return Camera(self._model, self._data, self._image_size, self._view(0.95), fine=False)

    @cached_property
    def _fine_camera(self) -> Camera:
        return Camera(self._model, self._data, self._render_size, self._view(1.25), fine=True)

    def _view(self, distance: float) -> View | str:
        return View(self._lookat, distance, 140.0, -30.0) if self._camera_name == "front" else self._camera_name


_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


def _meta_world(name: str) -> Any:
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called = True
    env._partially_observable = False
    # Layouts are drawn here, by a generator that a seed really sets: Meta-World's own ignores the seed of a reset.
    env._freeze_rand_vec = True
    env.max_path_length = sys.maxsize
    return env
