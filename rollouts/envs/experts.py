"""Scripted policies: experts that do a task, and ways to fail at it."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.api import EnvError
from rollouts.envs.types import STATE, Action, Observation, Policy, Task

Failing = Literal["stop", "miss", "random"]
POINT_TASKS = ("there", "back")
DOOR_GRIP, DOOR_REACH, PULL = (0.05, 0.0, 0.0), (0.12, 0.12, 0.04), (-0.8, -1.0)
"""Where the handle of a door is, seen from a hand that holds it, within what, and how it is then pulled (x, y): the
script itself only leans on the handle, and jams in one of ten doors that stand ajar."""


def expert(task: str, noise: float = 0.0) -> Policy:
    """Does ``task``, a task of the point scene or of a Meta-World pair.

    ``noise`` is the standard deviation of what is added to each dimension of an action, before it is cut to [-1, 1].
    Raises :class:`rollouts.envs.api.EnvError` for a task without a script.
    """
    return NoisyPolicy(PointExpert() if task in POINT_TASKS else MetaWorldExpert(task), noise)


def failing(how: Failing, task: str, noise: float = 0.0) -> Policy:
    """Fails at ``task``, most of the time, as an expert would not.

    ``stop`` breaks off: an expert that stands still after 2 to 10 decisions. ``miss`` sees the object 8 to 15 cm
    beside where it is (as far again in the point scene, whose plane is larger). ``random`` wanders.
    """
    match how:
        case "stop":
            return Stopping(expert(task, noise))
        case "miss":
            return Missing(expert(task, noise), (0.3, 0.5) if task in POINT_TASKS else (0.08, 0.15))
        case "random":
            return Wandering(2 if task in POINT_TASKS else 4)


class NoisyPolicy:
    """Another policy's actions with Gaussian noise added."""

    def __init__(self, policy: Policy, noise: float) -> None:
        self._policy, self._noise = policy, noise
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation, task: Task) -> Action:
        action = self._policy.act(observation, task)
        noisy = action + self._noise * self._rng.standard_normal(len(action))
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Style:
    """The manner of a policy that follows a script, the same in all its attempts.

    ``pace``: share of each movement that is made. ``lean``: what is added to every action [A]. ``noise``: deviation of
    what is drawn anew for each. The gripper, beyond the first 3 dimensions (2 in the point scene), is the script's.
    """

    pace: float
    lean: tuple[float, ...]
    noise: float


def draw_style(task: str, seed: int) -> Style:
    """From brisk and sure to slow, crooked and shaky: some styles hardly fail, and others hardly succeed."""
    rng = np.random.default_rng([seed, 17])
    size = 2 if task in POINT_TASKS else 3
    lean = rng.uniform(0.0, 0.7) * _direction(rng, size)
    return Style(float(rng.uniform(0.15, 1.0)), tuple(map(float, lean)), float(rng.uniform(0.05, 0.8)))


class StyledPolicy:
    """Another policy's actions, in a manner of its own."""

    def __init__(self, policy: Policy, style: Style) -> None:
        self._policy, self._style = policy, style
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation, task: Task) -> Action:
        action = self._policy.act(observation, task).copy()
        moves = len(self._style.lean)
        action[:moves] = self._style.pace * action[:moves] + self._style.lean
        action[:moves] += self._style.noise * self._rng.standard_normal(moves)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def _direction(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    way = rng.standard_normal(size)
    return way / np.linalg.norm(way)


class PointExpert:
    """Goes to the block, then to the goal, whatever the task: the state tells."""

    def reset(self, seed: int) -> None:
        pass

    def act(self, observation: Observation, task: Task) -> Action:
        reach, goal = observation[STATE][4:6], observation[STATE][6:8]
        way = goal + reach if np.linalg.norm(reach) < 0.1 else reach
        return np.clip(way / 0.1, -1.0, 1.0).astype(np.float32)


class MetaWorldExpert:
    """Meta-World's own script of a task (``metaworld.policies``), fed from the state of our scenes."""

    def __init__(self, task: str) -> None:
        scripts = _scripts()
        if f"{task}-v3" not in scripts:
            raise EnvError(f"no script for the task {task!r}; experts know the point scene's and Meta-World's tasks")
        self._task = task
        self._script = scripts[f"{task}-v3"]()

    def reset(self, seed: int) -> None:
        pass

    def act(self, observation: Observation, task: Task) -> Action:
        if task.name != self._task:
            raise EnvError(f"this expert knows {self._task!r}, not {task.name!r}")
        state = observation[STATE].astype(np.float64)
        # The observation that scripts read: hand, gripper and object in the first 7 of 39, the goal in the last 3.
        raw = np.zeros(39)
        raw[:7], raw[-3:] = state[:7], state[10:13]
        with warnings.catch_warnings():
            # Scripts ask for more than the arm gives; that is how they go at full speed.
            warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
            action: NDArray[np.float32] = self._script.get_action(raw)[:4]
        if self._task == "door-open" and np.all(np.abs(state[7:10] - DOOR_GRIP) < DOOR_REACH):
            action[:2] = PULL
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class Stopping:
    """Follows a policy for 2 to 10 decisions, then stands still with the gripper as it is."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._left = 0
        self._last: Action | None = None

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._left = int(np.random.default_rng(seed).integers(2, 11))
        self._last = None

    def act(self, observation: Observation, task: Task) -> Action:
        if self._left > 0 or self._last is None:
            self._left -= 1
            self._last = self._policy.act(observation, task)
            return self._last
        still = np.zeros_like(self._last)
        still[3:] = self._last[3:]
        return still


class Missing:
    """Follows a policy that sees the object displaced, sideways, by a distance drawn from ``reach`` (metres)."""

    def __init__(self, policy: Policy, reach: tuple[float, float]) -> None:
        self._policy, self._reach = policy, reach
        self._offset = np.zeros(2, np.float32)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        rng = np.random.default_rng(seed)
        angle, distance = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(*self._reach)
        self._offset = (distance * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)

    def act(self, observation: Observation, task: Task) -> Action:
        state = observation[STATE].copy()
        # Where the object is, and where it is seen from the hand: see the scenes for what stands where in a state.
        places = (4,) if len(state) == 8 else (4, 7)
        for place in places:
            state[place : place + 2] += self._offset
        return self._policy.act({**observation, STATE: state}, task)


class Wandering:
    """A random walk that keeps its direction for a while (an Ornstein-Uhlenbeck process), so that it gets somewhere."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(0)
        self._drift = np.zeros(size)

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drift = self._rng.standard_normal(self._size)

    def act(self, observation: Observation, task: Task) -> Action:
        self._drift = 0.85 * self._drift + 0.5 * self._rng.standard_normal(self._size)
        return np.clip(self._drift, -1.0, 1.0).astype(np.float32)


@cache
def _scripts() -> dict[str, Any]:
    from metaworld.policies import ENV_POLICY_MAP

    return dict(ENV_POLICY_MAP)
