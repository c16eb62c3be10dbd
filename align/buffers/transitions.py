"""A replay buffer of transitions that keeps every observation once.

Letters: ``T`` steps of an episode, ``C`` frames that the buffer holds, ``K`` transitions that are drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from rewards.success.types import LabelledEpisode
from rollouts.envs.types import STATE

Arrays = dict[str, NDArray[Any]]
FIRST_ALLOCATION = 1024

ACTION, REWARD, TERMINAL, RETURN, LEFT, TASK, IMITATE, VERSION = (
    "action",
    "reward",
    "terminal",
    "mc_return",
    "left",
    "task",
    "imitate",
    "policy_version",
)
_OBSERVATION = "observation/"


class BufferFault(ValueError):
    """Episodes do not fit the buffer; the message is one line that says what to do."""


@final
class TransitionBuffer:
    """A ring of at most ``capacity`` frames that grows as it fills; an episode of ``T`` steps takes ``T + 1``.

    A frame is an observation with what was done in it: action, reward, and how many steps of the episode were left,
    which is 0 for the last. A transition is a frame with steps left and the frame after it, so that images are stored
    once. When the ring is full, the oldest frames go, and with them the transitions that begin in them.

    ``tasks`` are the instructions that episodes may have; a frame keeps the index.
    """

    def __init__(self, capacity: int, tasks: Sequence[str]) -> None:
        if capacity < 2:
            raise BufferFault(f"a buffer needs room for at least 2 frames, got {capacity}")
        self._capacity = capacity
        self._tasks = {text: index for index, text in enumerate(tasks)}
        self._frames: Arrays = {}
        self._allocated = 0
        self._next = 0
        self._size = 0
        self._starts: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return len(self._starts)

    def add(self, labelled: LabelledEpisode, *, imitate: bool) -> int:
        """Takes an episode and returns how many transitions it has; ``imitate`` marks them as worth imitating.

        Raises :class:`BufferFault` for an unknown instruction, an episode longer than the buffer, or observations that
        do not look like the first ones.
        """
        episode, steps = labelled.episode, len(labelled)
        if steps == 0:
            return 0
        if steps + 1 > self._capacity:
            raise BufferFault(
                f"episode {episode.id!r} of {steps} steps does not fit {self._capacity} frames: raise the capacity"
            )
        if episode.task.instruction not in self._tasks:
            raise BufferFault(f"no embedding for the instruction {episode.task.instruction!r}: embed all tasks' first")
        columns = {_OBSERVATION + key: np.asarray(values) for key, values in episode.observations.items()}
        columns |= {
            ACTION: _with_last(episode.actions),
            REWARD: _with_last(labelled.rewards),
            TERMINAL: _with_last(labelled.terminals),
            RETURN: _with_last(labelled.mc_returns),
            LEFT: np.arange(steps, -1, -1, dtype=np.int32),
            TASK: np.full(steps + 1, self._tasks[episode.task.instruction], dtype=np.int32),
            IMITATE: np.full(steps + 1, imitate),
            VERSION: np.full(steps + 1, episode.policy_version, dtype=np.int64),
        }
        self._check(episode.id, steps + 1, columns)
        self._reserve(columns, steps + 1)
        rows = (self._next + np.arange(steps + 1)) % self._capacity
        for name, values in columns.items():
            self._frames[name][rows] = values
        self._next = int(rows[-1] + 1) % self._capacity
        self._size = min(self._size + steps + 1, self._capacity)
        self._index()
        return steps

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Frames where transitions begin, uniformly and with replacement, of the given shape."""
        return self._starts[generator.integers(0, len(self._starts), size=shape)]

    def gather(self, starts: NDArray[np.int64], *, gamma: float, n_step: int = 1) -> Arrays:
        """The transitions that begin at frames ``starts`` [K].

        Keys: the observations and ``next_observations`` by name (``observation/state``, ``next_observation/state`` and
        so on), ``action``, ``reward``, ``discount``, ``mc_return``, ``task``, ``imitate``, ``policy_version``. With
        ``n_step`` above 1 rewards are summed over so many steps, with discount, up to a terminal step or the episode's
        last observation; ``discount`` is gamma to their number, 0 if the last was terminal.
        """
        frames = self._frames
        reward = np.zeros(len(starts), dtype=np.float32)
        discount = np.ones(len(starts), dtype=np.float32)
        row, open_ = starts, np.ones(len(starts), dtype=bool)
        for _ in range(n_step):
            reward += np.where(open_, discount * frames[REWARD][row], 0)
            discount = np.where(open_, discount * np.where(frames[TERMINAL][row], 0, gamma), discount)
            row = np.where(open_, (row + 1) % self._capacity, row)
            open_ = open_ & (discount > 0) & (frames[LEFT][row] > 0)
        observations = {name: values for name, values in frames.items() if name.startswith(_OBSERVATION)}
        return {
            **{name: values[starts] for name, values in observations.items()},
            **{f"next_{name}": values[row] for name, values in observations.items()},
            **{name: frames[name][starts] for name in (ACTION, RETURN, TASK, IMITATE, VERSION)},
            REWARD: reward,
            "discount": discount.astype(np.float32),
        }

    def states(self) -> NDArray[np.float32]:
        """States of all frames, [C, S], in no order that matters; raises :class:`BufferFault` where there are none."""
        if _OBSERVATION + STATE not in self._frames:
            raise BufferFault("the buffer holds no states")
        states: NDArray[np.float32] = self._frames[_OBSERVATION + STATE][: self._size]
        return states

    def state_dict(self) -> dict[str, Any]:
        """Tensors that share the buffer's memory: write them before adding more."""
        frames = {name: torch.from_numpy(values[: self._size]) for name, values in self._frames.items()}
        return {"frames": frames, "next": self._next, "size": self._size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        columns: Arrays = {name: values.numpy() for name, values in state["frames"].items()}
        if state["size"] > self._capacity:
            raise BufferFault(f"the checkpoint holds {state['size']} frames: raise the capacity to at least that")
        if state["next"] != state["size"] % self._capacity and state["size"] != self._capacity:
            raise BufferFault("the checkpoint is of a full buffer of another capacity: set the capacity that it had")
        self._frames, self._allocated, self._next, self._size = {}, 0, 0, 0
        if columns:
            self._reserve(columns, state["size"])
        for name, values in columns.items():
            self._frames[name][: state["size"]] = values
        self._next, self._size = state["next"], state["size"]
        self._index()

    def _check(self, episode: str, rows: int, columns: Arrays) -> None:
        for name, values in columns.items():
            if len(values) != rows:
                raise BufferFault(f"{name} of episode {episode!r} has {len(values)} entries, its steps ask for {rows}")
        if not self._frames:
            return
        if columns.keys() != self._frames.keys():
            raise BufferFault(
                f"episode {episode!r} has {sorted(columns)}, the buffer holds {sorted(self._frames)}: "
                "all episodes must have the same observations"
            )
        for name, values in columns.items():
            known = self._frames[name]
            if values.shape[1:] != known.shape[1:] or not np.can_cast(values.dtype, known.dtype, "same_kind"):
                raise BufferFault(
                    f"{name} of episode {episode!r} is {values.dtype}{list(values.shape[1:])}, "
                    f"the buffer holds {known.dtype}{list(known.shape[1:])}"
                )

    def _reserve(self, columns: Arrays, rows: int) -> None:
        """Makes room for ``rows`` more frames, doubling until the capacity is reached."""
        needed = min(self._size + rows, self._capacity)
        if needed <= self._allocated:
            return
        self._allocated = min(self._capacity, max(needed, 2 * self._allocated, FIRST_ALLOCATION))
        for name, values in columns.items():
            grown = np.zeros((self._allocated, *values.shape[1:]), dtype=values.dtype)
            if name in self._frames:
                grown[: self._size] = self._frames[name][: self._size]
            self._frames[name] = grown

    def _index(self) -> None:
        self._starts = np.flatnonzero(self._frames[LEFT][: self._size]) if self._frames else self._starts[:0]


def normalisation(states: NDArray[np.floating], *, floor: float = 1e-2) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of ``states`` [C, S] over the frames, float32 [S] each; none is below ``floor``.

    The floor is in the states' own units (metres, mostly): a coordinate that prior data never moves must not be blown
    up when it moves at last.
    """
    mean = states.mean(axis=0, dtype=np.float64)
    std = np.maximum(states.std(axis=0, dtype=np.float64), floor)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _with_last(values: NDArray[Any]) -> NDArray[Any]:
    """[T + 1, ...]: the last frame has nothing done in it."""
    return np.concatenate([values, np.zeros_like(values[:1])])
