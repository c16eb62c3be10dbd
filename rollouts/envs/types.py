"""What a robot brings back: episodes, and the parts that make them.

Letters: ``T`` environment steps of an episode, ``A`` dimensions of an action, ``S`` of a state, ``H`` and ``W`` pixels.
Arrays are NumPy's. A step here is one decision of the policy, however many simulator ticks it lasts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

STATE, IMAGE = "state", "image"
"""Keys of an observation: float32 [S], and uint8 [H, W, 3], row 0 at the top."""

Observation: TypeAlias = Mapping[str, NDArray[Any]]
Action: TypeAlias = NDArray[np.float32]


class Source(StrEnum):
    """Who acted, and what for."""

    POLICY = "policy"
    DEMONSTRATION = "demonstration"
    FAILURE = "failure"
    PRIOR = "prior"


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do in a scene: the environment's own name for it, and the words that a policy is told."""

    name: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at a task.

    ``observations`` maps each key to [T+1, ...]; ``actions`` is [T, A] float32, within [-1, 1]. ``rewards`` [T] float32
    is what the environment paid and ``success`` [T] bool whether it holds the task to be done after each action: the
    simulator's truth, which a run with a learned reward uses for its reports alone. ``detected`` [T] float32 is the
    detector's probability of success after each action, NaN where nothing looked.

    ``terminated``: the task was over after the last action, by the truth or by the detector, and no value lies beyond.
    ``truncated``: the attempt was cut (time limit, intervention), and the value of the last observation still counts.
    Never merged; both are false only in a fragment.
    """

    id: str
    task: Task
    observations: Mapping[str, NDArray[Any]]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    success: NDArray[np.bool_]
    detected: NDArray[np.float32]
    terminated: bool
    truncated: bool
    source: Source
    policy_version: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: seed, ``hard_reset`` (the scene was reset before), ``instant`` (done before the first action)…"""

    def __len__(self) -> int:
        """``T``."""
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Whether the task was done at the end, in truth."""
        return bool(len(self.success) and self.success[-1])


def only(episode: Episode, keys: Collection[str]) -> Episode:
    """The same episode with no more of its observations than ``keys``."""
    kept = {key: values for key, values in episode.observations.items() if key in keys}
    return replace(episode, observations=kept)


@dataclass(frozen=True, slots=True)
class Detection:
    """Whether a task looks done, and how likely (a probability)."""

    success: bool
    probability: float


class SuccessDetector(Protocol):
    """Watches an attempt and says when it has succeeded; the end of an episode hangs on it."""

    def reset(self, task: Task) -> None:
        """A new attempt at ``task`` begins."""
        ...

    def detect(self, observation: Observation) -> Detection:
        """Called once after each action, in order."""
        ...

    def at_rest(self, observation: Observation, task: Task) -> bool:
        """Whether ``task`` looks done in a scene where nothing moves, of which this one look is all there is; between
        attempts, and without a trace in them."""
        ...


class Policy(Protocol):
    """Acts in an environment."""

    def reset(self, seed: int) -> None:
        """A new episode: forgets the last one, and draws from ``seed`` on."""
        ...

    def act(self, observation: Observation, task: Task) -> Action:
        """[A], within [-1, 1]."""
        ...
