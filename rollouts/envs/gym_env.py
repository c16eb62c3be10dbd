"""Any Gymnasium environment as a scene of one task."""

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rollouts.envs.api import EnvError, named
from rollouts.envs.types import STATE, Action, Task

SuccessFrom = Literal["info", "termination", "never"]
SUCCESS_KEYS = ("success", "is_success")


class GymScene(gymnasium.Env[Any, Action]):
    """Implements :class:`rollouts.envs.api.SceneEnv` for the environment ``id``; it is reset before each episode.

    "state": the observation (a box, a dictionary of boxes…) flattened by Gymnasium's own rule, float32. Actions are
    of [-1, 1] and stretched to the environment's own box. ``success`` says what means it: ``info`` reads "success" or
    "is_success" from ``info`` (above 0.5), ``termination`` takes ``terminated``, ``never`` is for tasks that have no
    success, where only the reward counts. Raises :class:`rollouts.envs.api.EnvError` for an unknown id and for
    spaces that do not fit.
    """

    proprio: tuple[int, ...] = ()

    def __init__(self, id: str, success: SuccessFrom = "info", instruction: str | None = None) -> None:
        try:
            self._env = gymnasium.make(id, render_mode="rgb_array")
        except gymnasium.error.Error as error:
            raise EnvError(f"gym:{id} cannot be made: {error}") from error
        box = self._env.action_space
        if not (isinstance(box, spaces.Box) and np.all(np.isfinite(box.low)) and np.all(np.isfinite(box.high))):
            raise EnvError(f"gym:{id} takes actions from {box}; a policy here acts in a box with finite bounds")
        if not self._env.observation_space.is_np_flattenable:
            raise EnvError(f"gym:{id} shows {self._env.observation_space}, which does not flatten to a vector")
        self.tasks = (Task(id, instruction or id),)
        self.metadata = self._env.metadata
        self.render_mode = "rgb_array"
        self._success = success
        self._box = box
        self.action_space = spaces.Box(-1.0, 1.0, (int(np.prod(box.shape)),), np.float32)
        size = spaces.flatdim(self._env.observation_space)
        self.observation_space = spaces.Dict({STATE: spaces.Box(-np.inf, np.inf, (size,), np.float32)})
        self._fresh: tuple[dict[str, NDArray[Any]], dict[str, Any]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        named(self.tasks, (options or {}).get("task", self.tasks[0].name))
        # Gymnasium's own generators take a seed of any size, but environments hand it on to others that do not.
        raw, info = self._env.reset(seed=None if seed is None else seed % 2**31)
        self._fresh = self._observation(raw), self._info(info, success=self._told(info, missing_is_none=True) or False)
        return self._fresh

    def step(self, action: Action) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        self._fresh = None
        low, high = self._box.low.astype(np.float64), self._box.high.astype(np.float64)
        unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0).reshape(self._box.shape)
        stretched = (low + (unit + 1.0) / 2.0 * (high - low)).astype(self._box.dtype)
        raw, reward, terminated, truncated, info = self._env.step(stretched)
        match self._success:
            case "info":
                success = bool(self._told(info))
            case "termination":
                success = bool(terminated)
            case "never":
                success = False
        return self._observation(raw), float(reward), bool(terminated), bool(truncated), self._info(info, success)

    def switch(self, task: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        named(self.tasks, task)
        return self._unmoved()

    def home(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return self._unmoved()

    def render(self) -> NDArray[np.uint8]:
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        self._env.close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each episode begins with a reset, and the seed of that is given."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._fresh = None

    def _unmoved(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        if self._fresh is None:
            raise EnvError(f"gym:{self.tasks[0].name} cannot go on after an episode: set reset_every_episodes to 1")
        return self._fresh

    def _observation(self, raw: Any) -> dict[str, NDArray[Any]]:
        return {STATE: np.asarray(spaces.flatten(self._env.observation_space, raw), np.float32)}

    def _info(self, info: Mapping[str, Any], success: bool) -> dict[str, Any]:
        return {**info, "success": success, "task": self.tasks[0].name}

    def _told(self, info: Mapping[str, Any], missing_is_none: bool = False) -> bool | None:
        for key in SUCCESS_KEYS:
            if key in info:
                return bool(float(info[key]) > 0.5)
        if missing_is_none:
            return None
        raise EnvError(
            f"gym:{self.tasks[0].name} does not say in info whether it succeeded: set success to 'termination' if its "
            "end means success, or to 'never'"
        )
