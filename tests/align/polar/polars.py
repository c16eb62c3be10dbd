"""What tests of training share: synthetic policies, settings of a short run, and a run that can be killed."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.polar.config import PolarTraining
from align.polar.train import PolarOutcome, train
from align.protocols import Metrics
from align.tracking.jsonl import JsonlSink, read_metrics
from align.tracking.tracker import RunTracker
from rewards.polar.types import Triple

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(favourites: str, length: int, rng: random.Random) -> str:
    """A text of ``length`` letters, nine in ten of them ``favourites``."""
    return "".join(rng.choice(favourites if rng.random() < 0.9 else LETTERS) for _ in range(length))


def triples(policies: Sequence[str], count: int, seed: int, length: int = 12) -> list[Triple]:
    """``count`` pre-training triples of random prompts: two policies each, all texts of one length."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        same, other = rng.sample(policies, 2)
        made.append(
            Triple(
                prompt="".join(rng.choice(LETTERS) for _ in range(4)),
                reference=write(same, length, rng),
                chosen=write(same, length, rng),
                rejected=write(other, length, rng),
                wrapper="pretrain",
            )
        )
    return made


POLICIES = ("abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx")
TRAIN = [dataclasses.replace(t, prompt=t.prompt * (1 + i % 3)) for i, t in enumerate(triples(POLICIES, 12, seed=1))]
HELDOUT = triples(POLICIES, 5, seed=2)


def settings(**changes: Any) -> PolarTraining:
    given: dict[str, Any] = {
        "lr": 3e-3, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32", "log_every": 1, "epochs": 2.0,
        "checkpoint_every": 2, "evaluate_every": 3,
    }  # fmt: skip
    return PolarTraining(**(given | changes))


class Kill:
    """A sink that ends the process, so to speak, in the middle of writing a step."""

    name = "kill"

    def __init__(self, at: int) -> None:
        self._at = at

    def write(self, step: int, metrics: Metrics) -> None:
        if step == self._at:
            raise KeyboardInterrupt

    def open(self) -> None: ...

    def phase(self, name: str) -> None: ...

    def samples(self, step: int, rows: Sequence[Any]) -> None: ...

    def close(self, failed: bool = False) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def tracker(folder: Path, kill_at: int = -1) -> Callable[[int], RunTracker]:
    return lambda steps: RunTracker([JsonlSink(folder), Kill(kill_at)])


def go(
    config: PolarTraining, model: Path, folder: Path, kill_at: int = -1, train_on: Sequence[Triple] = TRAIN
) -> PolarOutcome:
    return train(config, model, train_on, HELDOUT, folder, make_tracker=tracker(folder, kill_at))


def numbers(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The metrics of a run without what depends on the clock."""
    return [
        (step, {k: v for k, v in metrics.items() if not k.startswith(("timing_s/", "perf/"))})
        for step, metrics in read_metrics(folder / "metrics.jsonl")
    ]
