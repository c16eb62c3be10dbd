"""When an attempt has succeeded: thresholds, frames in a row, boxes, and a new start for each attempt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.success.detector import Detector, DetectorConfig, Gate, StateBox, learn_boxes
from rewards.success.errors import SuccessError
from rewards.success.frames import LabelledFrames
from rollouts.envs.types import IMAGE, STATE, Observation, Source, SuccessDetector, Task
from tests.rewards.success.toys import LEFT, RIGHT, demonstrations, episode


class Told:
    """A success model that says what a test wrote down, one number for each frame."""

    def __init__(self, *says: float) -> None:
        self._says = list(says)

    def probabilities(self, observations: Observation, task: Task) -> np.ndarray:
        assert observations[IMAGE].shape == (1, 4, 4, 3)
        return np.array([self._says.pop(0)], np.float32)

    def threshold(self, task: Task) -> float:
        return 0.75

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}


def seen(place: float = 0.5) -> Observation:
    return {IMAGE: np.zeros((4, 4, 3), np.uint8), STATE: np.array([place, 0.0], np.float32)}


def run(says: Sequence[float], places: Sequence[float] | None = None, **settings: Any) -> list[bool]:
    boxes = settings.pop("boxes", None)
    detector: SuccessDetector = Detector(Told(*says), DetectorConfig(**settings), boxes)
    detector.reset(RIGHT)
    return [detector.detect(seen(place)).success for place in (places or [0.5] * len(says))]


def test_frames_in_a_row() -> None:
    says = [0.9, 0.1, 0.9, 0.9, 0.9, 0.2]
    assert run(says, consecutive=1) == [True, False, True, True, True, False]
    assert run(says, consecutive=2) == [False, False, False, True, True, False]
    assert run(says, consecutive=3) == [False, False, False, False, True, False]


def test_the_models_own_threshold_is_the_default_and_is_included() -> None:
    assert run([0.74, 0.75, 0.76], consecutive=1) == [False, True, True]
    assert run([0.74, 0.75, 0.76], consecutive=1, threshold=0.755) == [False, False, True]


def test_not_before_the_least_number_of_steps() -> None:
    assert run([0.9] * 4, consecutive=1, minimum_steps=3) == [False, False, True, True]


def test_the_robot_must_be_in_the_box_in_each_of_the_frames() -> None:
    boxes = {"right": StateBox((0,), (0.4,), (0.6,))}
    assert run([0.9] * 5, [0.5, 0.7, 0.6, 0.4, 0.5], boxes=boxes) == [False, False, False, True, True]
    assert run([0.9] * 2, [0.9, 0.9], boxes={"left": boxes["right"]}) == [False, True]  # another task's box


def test_an_attempt_starts_anew_and_the_probability_is_that_of_the_frame() -> None:
    detector = Detector(Told(0.9, 0.8, 0.95), DetectorConfig(consecutive=2))
    with pytest.raises(SuccessError, match="call reset first"):
        detector.detect(seen())
    detector.reset(RIGHT)
    assert not detector.detect(seen()).success
    detector.reset(RIGHT)
    second = detector.detect(seen())
    assert not second.success
    assert second.probability == pytest.approx(0.8)
    assert detector.detect(seen()).success


def test_at_rest_one_frame_is_enough_and_the_attempt_knows_nothing_of_it() -> None:
    boxes = {"right": StateBox((0,), (0.4,), (0.6,))}
    says = (0.9, 0.9, 0.7, 0.9, 0.9)
    detector = Detector(Told(*says), DetectorConfig(consecutive=2, minimum_steps=2), boxes)
    assert detector.at_rest(seen(), RIGHT)
    assert [detector.at_rest(seen(place), RIGHT) for place in (0.7, 0.5)] == [False, False]
    detector.reset(RIGHT)
    assert [detector.detect(seen()).success for _ in range(2)] == [False, True]


def test_no_number_is_no_success() -> None:
    assert run([float("nan"), 0.9], consecutive=1) == [False, True]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30),
    st.integers(1, 4),
    st.integers(0, 5),
    st.floats(0.1, 0.9),
)
def test_a_gate_opens_exactly_on_a_full_run(
    frames: list[tuple[float, bool]], consecutive: int, least: int, threshold: float
) -> None:
    gate = Gate(consecutive, least, threshold, StateBox((0,), (0.0,), (1.0,)))
    good = [p >= threshold and inside for p, inside in frames]
    for step, (p, inside) in enumerate(frames):
        run_there = step + 1 >= consecutive and all(good[step + 1 - consecutive : step + 1])
        assert gate.step(p, np.array([0.5 if inside else 2.0])) == (run_there and step + 1 >= least)


def test_boxes_are_learned_from_the_ends_of_demonstrations() -> None:
    episodes = [
        episode([0.3, 0.5, 0.9], seed=1),
        episode([0.3, 0.6, 0.8], seed=2),
        episode([0.9, 0.1], LEFT, seed=3),
        episode([0.9, 0.7], source=Source.FAILURE, seed=4),
    ]
    boxes = learn_boxes(episodes, [0], margin=0.05)
    assert boxes["right"].low == pytest.approx((0.75,)) and boxes["right"].high == pytest.approx((0.95,))
    assert boxes["left"].low == pytest.approx((0.05,)) and boxes["left"].high == pytest.approx((0.15,))
    wider = learn_boxes(episodes, [0], margin=[0.0], last=2)
    assert wider["right"].low == pytest.approx((0.5,))
    assert boxes["right"].holds(np.array([0.94, 7.0])) and not boxes["right"].holds(np.array([0.96, 7.0]))


def test_what_a_box_cannot_see_is_said() -> None:
    bare = replace(demonstrations(1)[0], observations={})
    with pytest.raises(SuccessError, match="has no states"):
        learn_boxes([bare], [0], 0.1)
    gate = Gate(1, 0, 0.5, StateBox((4,), (0.0,), (1.0,)))
    with pytest.raises(SuccessError, match="turn states on"):
        gate.step(0.9, None)
    with pytest.raises(SuccessError, match="the state has 2 dimensions"):
        gate.step(0.9, np.zeros(2))


@pytest.mark.parametrize("broken", [{"threshold": 0.0}, {"threshold": 1.5}, {"consecutive": 0}, {"minimum_steps": -1}])
def test_settings_of_a_detector_that_mean_nothing_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(broken))):
        DetectorConfig(**broken)


@pytest.mark.parametrize("broken", [((), (), ()), ((0,), (0.0,), (1.0, 2.0)), ((0,), (1.0,), (0.0,))])
def test_boxes_that_mean_nothing_are_refused(broken: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="box"):
        StateBox(*broken)
