"""Scorers that do what a test tells them."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.batcher import text_of
from rewards.serve.types import Rendered, ServeItem
from rollouts.engines.base import EngineError


def item(output: str, prompt: str = "p", reference: str = "r") -> PolarItem:
    return PolarItem(prompt, reference, output)


def output_of(one: ServeItem) -> str:
    return one.text if isinstance(one, Rendered) else text_of(one.output)


def worth(one: ServeItem) -> float:
    """The score that every fake gives: the number that the output is, else minus its length."""
    text = output_of(one)
    return float(text) if text.lstrip("-").isdigit() else -float(len(text))


class FakeScorer:
    """Scores by :func:`worth`, keeps its batches, and fails as often as it is told.

    While ``gate`` is clear, a batch waits inside; ``entered`` counts those that have come in.
    """

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign
        self.batches: list[list[ServeItem]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fail_next = 0
        self.poison: Callable[[ServeItem], BaseException | None] = lambda one: None
        self.answer: Callable[[list[ItemScore]], list[ItemScore]] = lambda scores: scores
        self.rebuild_fails = 0
        self.rebuilt = 0
        self.closed = False

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(30)
        if self.fail_next:
            self.fail_next -= 1
            raise EngineError("the engine was killed")
        for one in items:
            if error := self.poison(one):
                raise error
        return self.answer([ItemScore(self.sign * worth(one), frozenset(), 3, 10) for one in items])

    def rebuild(self) -> None:
        self.threads.add(threading.get_ident())
        if self.rebuild_fails:
            self.rebuild_fails -= 1
            raise EngineError("no memory")
        self.rebuilt += 1

    def close(self) -> None:
        self.closed = True


class PlainScorer:
    """For other processes: scores by :func:`worth`. An output may say ``sleep`` or ``refuse``."""

    def __init__(self, folder: Path) -> None:
        if folder.name == "missing":
            raise ValueError(f"{folder} holds no model")
        self.folder = folder

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        for one in items:
            if output_of(one) == "sleep":
                (self.folder / "asleep").touch()
                time.sleep(600)
            if output_of(one) == "refuse":
                raise ValueError("item 0 is too long")
        return [ItemScore(worth(one), frozenset(), 3, 10) for one in items]

    def rebuild(self) -> None:
        raise AssertionError("a process is replaced, not rebuilt")

    def close(self) -> None:
        (self.folder / "closed").touch()
