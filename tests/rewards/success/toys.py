"""Toy episodes with pictures: a red square that moves to the right, and a task that is done once it is there."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import IMAGE, STATE, Episode, Observation, Source, Task

RIGHT = Task("right", "move right")
LEFT = Task("left", "move left")
SIZE, SQUARE = 24, 6


def picture(place: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """[SIZE, SIZE, 3]: the square at ``place``, 0 at the left border to 1 at the right one, on grey noise."""
    image = rng.integers(90, 130, (SIZE, SIZE, 3)).astype(np.uint8)
    left = round(place * (SIZE - SQUARE))
    image[9 : 9 + SQUARE, left : left + SQUARE] = (220, 30, 30)
    return image


def episode(
    places: Sequence[float],
    task: Task = RIGHT,
    source: Source = Source.DEMONSTRATION,
    seed: int = 0,
    detected: Sequence[float] | None = None,
    name: str = "",
) -> Episode:
    """The square at ``places`` [T+1]; done, in truth, at 0.8 or beyond (0.2 or below for ``left``)."""
    rng = np.random.default_rng(seed)
    at = np.array(places, np.float32)
    done = (at >= 0.8 if task == RIGHT else at <= 0.2)[1:]
    steps = len(places) - 1
    return Episode(
        id=name or f"{task.name}-{source}-{seed}",
        task=task,
        observations={
            IMAGE: np.stack([picture(place, rng) for place in places]),
            STATE: np.stack([at, rng.normal(size=len(at)).astype(np.float32)], axis=1),
        },
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.where(done, 0, -1).astype(np.float32),
        success=done,
        detected=np.full(steps, np.nan, np.float32) if detected is None else np.array(detected, np.float32),
        terminated=source is Source.DEMONSTRATION,
        truncated=source is not Source.DEMONSTRATION,
        source=source,
    )


def demonstrations(count: int, task: Task = RIGHT, seed: int = 0) -> list[Episode]:
    """Each from about the middle to the end in ten steps, the last three of them there."""
    made = []
    for place in range(count):
        start = 0.3 + 0.2 * np.random.default_rng([seed, place]).random()
        way = [*np.linspace(start, 0.7, 8), 0.95, 0.97, 1.0]
        made.append(episode(way if task == RIGHT else [1 - p for p in way], task, seed=100 * seed + place))
    return made


def failures(count: int, task: Task = RIGHT, seed: int = 50) -> list[Episode]:
    """Each wanders where the task is not done."""
    made = []
    for place in range(count):
        way = np.random.default_rng([seed, place]).uniform(0.0, 0.7, 9)
        way = way if task == RIGHT else 1 - way
        made.append(episode(way.tolist(), task, Source.FAILURE, seed=seed + place))
    return made


def ended(by: Episode) -> Episode:
    """The same episode of a policy, ended by a detector after its last step."""
    return replace(by, source=Source.POLICY, terminated=True, truncated=False)


def frames_at(places: Sequence[float], seed: int = 9) -> Observation:
    """Batched observations [N, ...]."""
    rng = np.random.default_rng(seed)
    at = np.array(places, np.float32)
    return {
        IMAGE: np.stack([picture(place, rng) for place in places]),
        STATE: np.stack([at, rng.normal(size=len(at)).astype(np.float32)], axis=1),
    }
