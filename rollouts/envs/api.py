"""What every environment of a robot offers, simulated or real: several tasks in one scene."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import Action, Observation, Task

Info: TypeAlias = Mapping[str, Any]
Seen: TypeAlias = tuple[Observation, Info]


class EnvError(ValueError):
    """An environment that cannot be built or used as asked; the message is one line that says what to do."""


class SceneEnv(Protocol):
    """A Gymnasium environment whose tasks share one scene, so that one task can begin where another has ended.

    Observations map "state" to float32 [S] and, where asked for, "image" to uint8 [H, W, 3]; the arrays are the
    caller's to keep. Every ``info`` holds "success" (bool: whether the current task is done, in truth) and "task" (its
    name). Success ends nothing by itself: whoever runs the attempt decides by what it ends. ``terminated`` and
    ``truncated`` say that the environment cannot go on without a :meth:`reset`.
    """

    @property
    def proprio(self) -> tuple[int, ...]:
        """Which of the state's numbers a robot measures on itself, with no camera; none where that is not known."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """In the order in which they follow each other."""
        ...

    @property
    def observation_space(self) -> Any: ...

    @property
    def action_space(self) -> Any:
        """A box [A] of -1 to 1."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        """A hard reset: the whole scene as ``options["task"]`` (by default the first) begins, drawn by ``seed``."""
        ...

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]: ...

    def switch(self, task: str) -> Seen:
        """From now on the task is ``task``. Nothing moves."""
        ...

    def home(self) -> Seen:
        """The robot goes back to where it starts, and things come to rest; where they are, they stay."""
        ...

    def render(self) -> NDArray[np.uint8]:
        """[H, W, 3], for people to look at."""
        ...

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, the simulator's variables included."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def named(tasks: tuple[Task, ...], name: str) -> Task:
    """The task called ``name``; raises :class:`EnvError` with the names that there are."""
    for task in tasks:
        if task.name == name:
            return task
    raise EnvError(f"no task {name!r} in this scene, which has {', '.join(t.name for t in tasks)}")


def derive_seed(*parts: int | str) -> int:
    """63 bits that differ whenever any of ``parts`` does."""
    key = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
