"""One model for several callers: who waits is answered together, and exactly those it concerns hear of an error."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.success.backbone import BackboneConfig, BackboneModel
from rewards.success.batched import BatchedModel
from rewards.success.errors import SuccessError
from rewards.success.frames import FrameConfig, LabelledFrames, frames_of
from rewards.success.head import HeadConfig
from rewards.success.load import load_model
from rewards.success.model import Probabilities
from rewards.success.vlm import VLMConfig, VLMModel
from rollouts.envs.types import IMAGE, STATE, Observation, Task
from tests.rewards.success.tiny_vlm import build_tiny_vlm
from tests.rewards.success.toys import LEFT, RIGHT, demonstrations, failures, frames_at

BAD = 255


class Bad(ValueError):
    """Names the request that it is about."""


class Fake:
    """P(done) is the first pixel as a share of 255, and for LEFT what is missing from 1; BAD raises.

    ``calls`` has the task and the number of rows of each. While ``gate`` is closed nobody leaves, and ``entered`` says
    that somebody is in.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self._inside = threading.Lock()

    def probabilities(self, observations: Observation, task: Task) -> Probabilities:
        assert self._inside.acquire(blocking=False), "two at a time"
        try:
            self.entered.set()
            assert self.gate.wait(60)
            self.calls.append((task.name, len(observations[IMAGE])))
            pixels = observations[IMAGE][:, 0, 0, 0]
            if (pixels == BAD).any():
                raise Bad(f"{len(pixels)} rows")
            share = pixels.astype(np.float32) / 255
            return share if task == RIGHT else 1 - share
        finally:
            self._inside.release()

    def threshold(self, task: Task) -> float:
        return {"right": 0.25, "left": 0.75}[task.name]

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        assert self._inside.acquire(blocking=False), "two at a time"
        self.entered.set()
        assert self.gate.wait(60)
        self._inside.release()
        return {"fit/rows": float(len(frames.images))}

    def save(self, folder: Path) -> None:
        folder.mkdir()

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "fake"}


def look(*pixels: int, size: int = 2, dtype: type = np.uint8) -> Observation:
    return {IMAGE: np.stack([np.full((size, size, 3), pixel, dtype) for pixel in pixels])}


def alone(pixels: Sequence[int], task: Task) -> list[float]:
    share = np.array(pixels, np.float32) / 255
    return (share if task == RIGHT else 1 - share).tolist()  # type: ignore[no-any-return]


def until(reached: Callable[[], bool]) -> None:
    """Polls; a test that never gets there is ended by its time limit."""
    while not reached():
        time.sleep(0.001)


def behind_a_closed_gate(
    requests: Sequence[tuple[Observation, Task]],
) -> tuple[Fake, list[Future[Probabilities]]]:
    """The first of ``requests`` keeps the model busy until all others wait; then the gate opens, and all have ended."""
    fake = Fake()
    fake.gate.clear()
    model = BatchedModel(fake)
    with ThreadPoolExecutor(len(requests)) as pool:
        calls = [pool.submit(model.probabilities, *requests[0])]
        assert fake.entered.wait(60)
        for place, request in enumerate(requests[1:], 1):
            calls.append(pool.submit(model.probabilities, *request))
            until(lambda: len(model._waiting) == place)  # noqa: B023 - read at once; the order of arrival is known
        fake.gate.set()
    assert not model._waiting and not model._busy
    return fake, calls


def test_alone_the_inner_model_gets_the_very_request() -> None:
    seen: list[Observation] = []

    class Watching(Fake):
        def probabilities(self, observations: Observation, task: Task) -> Probabilities:
            seen.append(observations)
            return super().probabilities(observations, task)

    asked = look(51, 102)
    assert BatchedModel(Watching()).probabilities(asked, RIGHT).tolist() == alone([51, 102], RIGHT)
    assert seen[0] is asked


def test_who_waits_for_the_same_task_is_answered_by_one_pass() -> None:
    fake, calls = behind_a_closed_gate([(look(0), RIGHT), (look(10), RIGHT), (look(20, 30), RIGHT), (look(40), RIGHT)])
    assert fake.calls == [("right", 1), ("right", 4)]
    assert [call.result().tolist() for call in calls] == [alone(p, RIGHT) for p in ([0], [10], [20, 30], [40])]
    calls[1].result()[0] = 9.0  # everybody's answer is their own
    assert calls[2].result().base is None


def test_other_tasks_shapes_types_and_keys_have_passes_of_their_own_oldest_first() -> None:
    with_state = {**look(60), STATE: np.zeros((1, 2), np.float32)}
    fake, calls = behind_a_closed_gate(
        [
            (look(0), RIGHT),
            (look(10), LEFT),
            (look(20), RIGHT),
            (look(30), LEFT),
            (look(40, size=3), RIGHT),
            (look(50, dtype=np.uint16), RIGHT),
            (with_state, RIGHT),
            (look(70), Task("left", "another wording")),
            (look(80), RIGHT),
        ]
    )
    assert fake.calls == [("right", 1), ("left", 2), ("right", 2), *[("right", 1)] * 3, ("left", 1)]
    tasks = (RIGHT, LEFT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT, LEFT, RIGHT)
    expected = [alone([10 * place], task) for place, task in enumerate(tasks)]
    assert [call.result().tolist() for call in calls] == expected


def test_an_error_reaches_only_whom_it_is_about() -> None:
    fake, calls = behind_a_closed_gate(
        [(look(0), RIGHT), (look(10), RIGHT), (look(BAD, 1, 2), RIGHT), (look(20), RIGHT), (look(BAD), LEFT)]
    )
    assert fake.calls == [("right", 1), ("right", 5), ("right", 1), ("right", 3), ("right", 1), ("left", 1)]
    with pytest.raises(Bad, match=r"^3 rows$"):
        calls[2].result()
    with pytest.raises(Bad, match=r"^1 rows$"):
        calls[4].result()
    assert [calls[place].result().tolist() for place in (0, 1, 3)] == [alone([p], RIGHT) for p in (0, 10, 20)]


def test_rows_that_are_missing_from_one_array_do_not_shift_those_of_others() -> None:
    class Checking(Fake):
        def probabilities(self, observations: Observation, task: Task) -> Probabilities:
            if len({len(array) for array in observations.values()}) > 1:
                raise SuccessError("ragged")
            return observations[STATE][:, 0].copy()

    def both(images: int, states: Sequence[float]) -> Observation:
        return {**look(*[1] * images), STATE: np.array(states, np.float32)[:, None]}

    fake = Checking()
    model = BatchedModel(fake)
    asked = [both(1, [0.1]), both(2, [0.2]), both(1, [0.3, 0.4]), both(1, [0.5]), {IMAGE: np.zeros((), np.uint8)}]
    start = threading.Barrier(len(asked))

    def ask(one: Observation) -> Any:
        start.wait()
        try:
            return model.probabilities(one, RIGHT).tolist()
        except (SuccessError, TypeError, KeyError) as error:
            return type(error)

    for _ in range(20):
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(ask, asked))
        assert found[1:3] == [SuccessError, SuccessError] and found[4] is TypeError
        assert [found[0], found[3]] == [pytest.approx([0.1]), pytest.approx([0.5])]


def test_an_answer_of_the_wrong_size_is_given_to_nobody() -> None:
    class Forgetful(Fake):
        def probabilities(self, observations: Observation, task: Task) -> Probabilities:
            return super().probabilities(observations, task)[:1]

    fake = Forgetful()
    fake.gate.clear()
    model = BatchedModel(fake)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(model.probabilities, look(0), RIGHT)]
        assert fake.entered.wait(60)
        calls += [pool.submit(model.probabilities, look(pixel), RIGHT) for pixel in (10, 20)]
        until(lambda: len(model._waiting) == 2)
        fake.gate.set()
    assert [call.result().tolist() for call in calls] == [alone([p], RIGHT) for p in (0, 10, 20)]


def test_an_interrupted_caller_leaves_the_others_to_somebody_else() -> None:
    class Interrupted(Fake):
        def probabilities(self, observations: Observation, task: Task) -> Probabilities:
            found = super().probabilities(observations, task)
            if len(found) == 2:
                raise KeyboardInterrupt
            return found

    fake = Interrupted()
    fake.gate.clear()
    model = BatchedModel(fake)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(model.probabilities, look(0), RIGHT)
        assert fake.entered.wait(60)
        others = [pool.submit(model.probabilities, look(pixel), RIGHT) for pixel in (10, 20)]
        until(lambda: len(model._waiting) == 2)
        fake.gate.set()
    assert first.result().tolist() == [0.0]
    failed = [call for call in others if call.exception() is not None]
    assert len(failed) == 1 and isinstance(failed[0].exception(), KeyboardInterrupt)
    (left,) = (call for call in others if call not in failed)
    assert left.result().tolist() == alone([10 if left is others[0] else 20], RIGHT)
    assert not model._waiting and not model._busy


requests = st.tuples(st.lists(st.sampled_from([0, 51, 102, 204, BAD]), min_size=0, max_size=3), st.booleans())


@settings(max_examples=40)
@given(st.lists(st.lists(requests, min_size=1, max_size=4), min_size=1, max_size=6))
def test_whatever_callers_ask_at_once_each_gets_what_it_would_get_alone(callers: list[Any]) -> None:
    fake = Fake()
    model = BatchedModel(fake)
    start = threading.Barrier(len(callers))

    def ask(own: Sequence[tuple[list[int], bool]]) -> list[Any]:
        start.wait()
        found: list[Any] = []
        for pixels, right in own:
            task = RIGHT if right else LEFT
            observations = look(*pixels) if pixels else {IMAGE: np.zeros((0, 2, 2, 3), np.uint8)}
            try:
                found.append(model.probabilities(observations, task).tolist())
            except Bad as error:
                found.append(str(error))
        return found

    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(ask, callers))
    for own, found in zip(callers, answers, strict=True):
        assert found == [
            f"{len(pixels)} rows" if BAD in pixels else alone(pixels, RIGHT if right else LEFT) for pixels, right in own
        ]
    good = sum(len(pixels) for own in callers for pixels, _ in own if BAD not in pixels)
    assert sum(rows for _, rows in fake.calls) >= good


def test_all_else_is_the_inner_models(tmp_path: Path) -> None:
    model = BatchedModel(Fake())
    assert (model.threshold(RIGHT), model.threshold(LEFT)) == (0.25, 0.75)
    assert model.describe() == {"kind": "fake"}
    model.save(tmp_path / "saved")
    assert (tmp_path / "saved").is_dir()


def test_nobody_is_answered_while_it_is_fitted() -> None:
    frames = frames_of([*demonstrations(1), *failures(1)], FrameConfig())
    fake = Fake()
    fake.gate.clear()
    model = BatchedModel(fake)
    with ThreadPoolExecutor(2) as pool:
        fitted = pool.submit(model.fit, frames)
        assert fake.entered.wait(60)
        asked = pool.submit(model.probabilities, look(51), RIGHT)
        until(lambda: len(model._waiting) == 1)
        fake.gate.set()
    assert asked.result().tolist() == alone([51], RIGHT)
    assert fitted.result() == {"fit/rows": len(frames.images)}


@pytest.mark.slow
def test_real_models_answer_as_alone(tmp_path: Path) -> None:
    head = HeadConfig(filters=8, kernel=2, steps=20, learning_rate=1e-2)
    backbone = BackboneModel(BackboneConfig(backbone="random", grid=2, views=1, folds=2, head=head))
    backbone.fit(frames_of([*demonstrations(3), *failures(2)], FrameConfig()))
    backbone.save(tmp_path / "backbone")
    vlm = VLMModel(VLMConfig(str(build_tiny_vlm(tmp_path / "llava")), question="is the square at the {name} ?"))
    frames = frames_at(np.linspace(0, 1, 8).tolist())
    for inner in (load_model(tmp_path / "backbone"), vlm):
        model = BatchedModel(inner)
        start = threading.Barrier(8)

        def ask(row: int, model: BatchedModel = model, start: threading.Barrier = start) -> Probabilities:
            start.wait()
            return model.probabilities({key: array[row : row + 1] for key, array in frames.items()}, RIGHT)

        with ThreadPoolExecutor(8) as pool:
            found = np.concatenate(list(pool.map(ask, range(8))))
        np.testing.assert_allclose(found, inner.probabilities(frames, RIGHT), atol=1e-5)
