"""When an attempt has succeeded: a threshold, several frames in a row, and where the robot must be."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.success.errors import SuccessError
from rewards.success.frames import shows_success
from rewards.success.model import SuccessModel
from rollouts.envs.types import STATE, Detection, Episode, Observation, Task


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """``threshold``: the probability from which on a frame counts; None leaves it to the model. A success is
    ``consecutive`` such frames in a row, not before ``minimum_steps`` actions of the attempt."""

    threshold: float | None = None
    consecutive: int = 2
    minimum_steps: int = 0

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        if self.consecutive < 1:
            raise ValueError(f"consecutive must be at least 1, got {self.consecutive}")
        if self.minimum_steps < 0:
            raise ValueError(f"minimum_steps must be at least 0, got {self.minimum_steps}")


@dataclass(frozen=True, slots=True)
class StateBox:
    """Where some ``dimensions`` of the robot's state must lie, ``low`` to ``high``, both included, for a success."""

    dimensions: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.dimensions) == len(self.low) == len(self.high) > 0:
            raise ValueError("a box needs the same number, 1 or more, of dimensions, low and high ends")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("the low end of a box must not lie above its high end")

    def holds(self, state: NDArray[Any]) -> bool:
        """Whether ``state`` [S] lies in the box."""
        if len(state) <= max(self.dimensions):
            raise SuccessError(f"the state has {len(state)} dimensions, and the box asks for {max(self.dimensions)}; "
                               "numbers start at 0")  # fmt: skip
        values = state[list(self.dimensions)]
        # In the state's own precision, or an end that was taken from a state could lie beyond it.
        low, high = (np.asarray(ends, values.dtype) for ends in (self.low, self.high))
        return bool(np.all((values >= low) & (values <= high)))


def learn_boxes(
    episodes: Iterable[Episode], dimensions: Sequence[int], margin: float | Sequence[float], last: int = 1
) -> dict[str, StateBox]:
    """For each task the box around the ``last`` states of its demonstrations, wider by ``margin`` on every side.

    ``margin`` is in the state's units, one for all dimensions or one each: with few demonstrations their own spread
    says little about where a success may end. Raises :class:`SuccessError` where a demonstration has no states.
    """
    ends: dict[str, list[NDArray[Any]]] = {}
    for episode in episodes:
        if not shows_success(episode):
            continue
        if STATE not in episode.observations:
            raise SuccessError(f"demonstration '{episode.id}' has no states; record them or use no state box")
        ends.setdefault(episode.task.name, []).append(episode.observations[STATE][-last:])
    boxes = {}
    for name, parts in ends.items():
        states = np.concatenate(parts)[:, list(dimensions)].astype(np.float64)
        low, high = states.min(0) - margin, states.max(0) + margin
        boxes[name] = StateBox(tuple(map(int, dimensions)), tuple(map(float, low)), tuple(map(float, high)))
    return boxes


class Gate:
    """What makes a success of single frames: the part of a detector that needs no model.

    Reports run it over recorded probabilities, and so judge just what an online detector would have done.
    """

    def __init__(self, consecutive: int, minimum_steps: int, threshold: float, box: StateBox | None) -> None:
        self._consecutive = consecutive
        self._minimum_steps = minimum_steps
        self._threshold = threshold
        self._box = box
        self._steps = self._run = 0

    def step(self, probability: float, state: NDArray[Any] | None) -> bool:
        """Whether the attempt has succeeded, after the frame with this ``probability`` and the robot in ``state``.

        A probability that is not a number is no success.
        """
        self._steps += 1
        inside = True
        if self._box is not None:
            if state is None:
                raise SuccessError(f"the detector has a state box and the observation no '{STATE}'; turn states on")
            inside = self._box.holds(state)
        self._run = self._run + 1 if probability >= self._threshold and inside else 0
        return self._run >= self._consecutive and self._steps >= self._minimum_steps


class Detector:
    """Implements :class:`rollouts.envs.types.SuccessDetector` over any success model.

    ``boxes`` maps a task's name to where the robot must be; a task without one may end anywhere. The probability that
    it reports is the model's, of that one frame.
    """

    def __init__(
        self, model: SuccessModel, config: DetectorConfig, boxes: Mapping[str, StateBox] | None = None
    ) -> None:
        self._model = model
        self._config = config
        self._boxes = dict(boxes or {})
        self._task: Task | None = None
        self._gate: Gate | None = None

    def reset(self, task: Task) -> None:
        """See :class:`rollouts.envs.types.SuccessDetector`."""
        self._task = task
        self._gate = self.gate(task)

    def detect(self, observation: Observation) -> Detection:
        """See :class:`rollouts.envs.types.SuccessDetector`."""
        if self._task is None or self._gate is None:
            raise SuccessError("the detector does not know the task yet; call reset first")
        probability = self._probability(observation, self._task)
        return Detection(self._gate.step(probability, observation.get(STATE)), probability)

    def at_rest(self, observation: Observation, task: Task) -> bool:
        """See :class:`rollouts.envs.types.SuccessDetector`: the same picture again and again would add nothing."""
        gate = self._gate_of(task, DetectorConfig(self._config.threshold, consecutive=1))
        return gate.step(self._probability(observation, task), observation.get(STATE))

    def gate(self, task: Task) -> Gate:
        """A new gate for an attempt at ``task``."""
        return self._gate_of(task, self._config)

    def _probability(self, observation: Observation, task: Task) -> float:
        batch = {key: np.asarray(value)[None] for key, value in observation.items()}
        return float(self._model.probabilities(batch, task)[0])

    def _gate_of(self, task: Task, config: DetectorConfig) -> Gate:
        threshold = self._model.threshold(task) if config.threshold is None else config.threshold
        return Gate(config.consecutive, config.minimum_steps, threshold, self._boxes.get(task.name))
