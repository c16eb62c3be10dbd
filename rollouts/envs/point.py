"""A scene for tests: a hand that moves in the plane and a block on a rail, to be taken there and back."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rollouts.envs.api import named
from rollouts.envs.types import IMAGE, STATE, Action, Task

TASKS = (Task("there", "take the block to the right"), Task("back", "take the block to the left"))
STEP, REACH, TOLERANCE, RAIL_END = 0.1, 0.15, 0.1, 0.8
HOME = np.array([0.0, 0.6])


class PointScene(gymnasium.Env[Any, Action]):
    """Two tasks in one plane, [-1, 1] each way; implements :class:`rollouts.envs.api.SceneEnv`.

    Actions [2] move the hand by 0.1 times their value. While the hand is within 0.15 of the block it carries it along
    the rail, a horizontal line whose height a hard reset draws from [-0.4, 0.1]. "there" is done when the block is
    within 0.1 of x = 0.5, "back" within 0.1 of x = -0.5; each starts, from a hard reset, at the other's goal (shifted
    by up to 0.1). A step pays -1, and 0 when it leaves the task done.

    "state" [8]: the hand, the block, the block seen from the hand, and the current task's goal seen from the block,
    x and y each. "image" (only with ``image``): the hand red, the block blue, no goal; row 0 is the largest y.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's own declaration)
    proprio = (0, 1)

    def __init__(self, image: bool = False, image_size: int = 16) -> None:
        self.tasks = TASKS
        self.render_mode = "rgb_array"
        self._image_size = image_size if image else 0
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        boxes: dict[str, spaces.Space[Any]] = {STATE: spaces.Box(-3.0, 3.0, (8,), np.float32)}
        if image:
            boxes[IMAGE] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(boxes)
        self._task = TASKS[0]
        self._hand = HOME.copy()
        self._block = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self._task = named(TASKS, (options or {}).get("task", TASKS[0].name))
        self._hand = HOME + self.np_random.uniform(-0.05, 0.05, 2)
        other = -self._goal_x()
        self._block = np.array([other + self.np_random.uniform(-0.1, 0.1), self.np_random.uniform(-0.4, 0.1)])
        return self._seen()

    def step(self, action: Action) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        move = STEP * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        held = np.linalg.norm(self._block - self._hand) < REACH
        before = self._hand
        self._hand = np.clip(self._hand + move, -1.0, 1.0)
        if held:
            x = self._block[0] + self._hand[0] - before[0]
            self._block = np.array([np.clip(x, -RAIL_END, RAIL_END), self._block[1]])
        observation, info = self._seen()
        return observation, 0.0 if info["success"] else -1.0, False, False, info

    def switch(self, task: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        self._task = named(TASKS, task)
        return self._seen()

    def home(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        self._hand = HOME.copy()
        return self._seen()

    def render(self) -> NDArray[np.uint8]:
        """[160, 160, 3]."""
        return self._draw(160)

    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self._task.name,
            "hand": self._hand.tolist(),
            "block": self._block.tolist(),
            "rng": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._task = named(TASKS, state["task"])
        self._hand, self._block = np.array(state["hand"]), np.array(state["block"])
        self.np_random.bit_generator.state = state["rng"]

    def _goal_x(self) -> float:
        return 0.5 if self._task.name == "there" else -0.5

    def _seen(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        goal = np.array([self._goal_x(), self._block[1]])
        state = np.concatenate([self._hand, self._block, self._block - self._hand, goal - self._block])
        observation: dict[str, NDArray[Any]] = {STATE: state.astype(np.float32)}
        if self._image_size:
            observation[IMAGE] = self._draw(self._image_size)
        success = bool(abs(self._block[0] - self._goal_x()) <= TOLERANCE)
        return observation, {"success": success, "task": self._task.name}

    def _draw(self, size: int) -> NDArray[np.uint8]:
        image = np.full((size, size, 3), 230, np.uint8)
        radius = max(1, size // 16)
        for (x, y), colour in ((self._block, (40, 60, 200)), (self._hand, (200, 40, 40))):
            column, row = round((x + 1) / 2 * (size - 1)), round((1 - y) / 2 * (size - 1))
            image[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = colour
        return image
