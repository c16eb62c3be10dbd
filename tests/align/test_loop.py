"""The loop's order, and that it knows nothing of what flows through it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from align import loop
from align.loop import Parts, Schedule, run
from rollouts.types import WeightUpdate


class Story:
    """All six parts; writes down what is asked of them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.logged: dict[int, dict[str, float]] = {}

    def collect(self, step: int) -> tuple[list[int], dict[str, float]]:
        self.told.append(f"collect {step}")
        return [step], {"collected": 1.0}

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        self.told.append(f"load {update.version}")
        return {"synced": 1.0}

    def label(self, experience: Sequence[int], step: int) -> tuple[list[int], dict[str, float]]:
        self.told.append(f"label {step}")
        return [10 * e for e in experience], {"labelled": 1.0}

    def add(self, labelled: Sequence[int]) -> None:
        self.told.append(f"add {list(labelled)}")

    def batches(self, step: int) -> list[str]:
        return ["a", "b"]

    def update(self, batch: str) -> dict[str, float]:
        self.told.append(f"update {batch}")
        return {"loss": 1.0}

    def weights(self) -> WeightUpdate:
        return WeightUpdate(len(self.told), "file:x")

    def evaluate(self, step: int) -> dict[str, float]:
        self.told.append(f"evaluate {step}")
        return {"eval/accuracy": 0.5}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def log(self, step: int, *metrics: Any) -> None:
        self.logged[step] = {k: v for m in metrics for k, v in m.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None


def play(schedule: Schedule, start: int = 0) -> Story:
    story = Story()
    run(Parts(*[story] * 6), schedule, lambda step: story.told.append(f"save {step}"), start)
    return story


def test_one_step_in_order() -> None:
    story = play(Schedule(total_steps=1, evaluate_every=1, checkpoint_every=1))
    assert story.told == [
        "evaluate 0",
        "collect 1",
        "label 1",
        "add [10]",
        "update a",
        "update b",
        "load 6",
        "evaluate 1",
        "save 1",
    ]
    assert story.logged[1].keys() == {"collected", "labelled", "loss", "synced", "eval/accuracy"}


def test_offline_steps_learn_without_collecting() -> None:
    story = play(Schedule(total_steps=3, offline_steps=2))
    assert [s for s in story.told if s.startswith("collect")] == ["collect 3"]
    assert story.told.count("update a") == 3


def test_what_happens_every_few_steps_happens_at_the_end_too() -> None:
    story = play(Schedule(total_steps=5, evaluate_every=2, checkpoint_every=3, sync_every=2))
    assert [s for s in story.told if s.startswith("evaluate")] == [
        "evaluate 0",
        "evaluate 2",
        "evaluate 4",
        "evaluate 5",
    ]
    assert [s for s in story.told if s.startswith("save")] == ["save 3", "save 5"]
    assert sum(s.startswith("load") for s in story.told) == 3


def test_zero_is_never() -> None:
    story = play(Schedule(total_steps=2, sync_every=0))
    assert not any(s.startswith(("evaluate", "save", "load")) for s in story.told)


def test_a_continued_run_takes_up_after_its_checkpoint() -> None:
    story = play(Schedule(total_steps=4, evaluate_every=2), start=2)
    assert [s for s in story.told if s.startswith("collect")] == ["collect 3", "collect 4"]
    assert "evaluate 0" not in story.told


def test_a_finished_run_does_nothing() -> None:
    assert play(Schedule(total_steps=4, evaluate_every=2), start=4).told == []


def test_the_loop_is_one_short_function() -> None:
    body = inspect.getsource(run).splitlines()
    docstring_and_signature = next(i for i, line in enumerate(body) if line.strip().endswith('"""')) + 1
    assert len(body) - docstring_and_signature <= 30
    functions = [f for _, f in inspect.getmembers(loop, inspect.isfunction) if f.__module__ == "align.loop"]
    assert functions == [run]


@pytest.mark.parametrize("word", ["prompt", "token", "episode", "completion", "robot", "text"])
def test_the_loop_knows_neither_text_nor_robots(word: str) -> None:
    assert word not in inspect.getsource(run).lower()
