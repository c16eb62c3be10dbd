"""Synthetic policies behind the Engine Protocol: each model says words of its own, at a length of its own."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.models import load_tokenizer, resolve
from rollouts.types import Finish, WeightUpdate

WORDS = {
    f"tiny:{i}": [f"{stem}{end}" for end in ("a", "en", "ing", "o")]
    for i, stem in enumerate(("red", "sky", "tree", "mill"))
}
SENTENCES = {"tiny:0": (2, 6), "tiny:1": (3, 9), "tiny:2": (6, 14), "tiny:3": (4, 10)}
CONTEXT = 512


class ScriptedEngine:
    """Says sentences of the model's words; what it says depends on the seed alone, as with a real engine."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self.calls: list[tuple[Request, ...]] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        self.calls.append(tuple(requests))
        return [[self._sample(seed, params) for seed in request.seeds] for request in requests]

    def _sample(self, seed: int, params: SamplingParams) -> Sample:
        rng = random.Random(seed)
        words, (least, most) = WORDS[self._name], SENTENCES[self._name]
        sentences = [" ".join(rng.choices(words, k=3)) + "." for _ in range(rng.randint(least, most))]
        ids = (*self._tokenizer.encode(" ".join(sentences)), 2)[: params.max_new_tokens]
        return Sample(tuple(ids), (), Finish.STOP if ids[-1] == 2 else Finish.LENGTH)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        raise NotImplementedError

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        raise NotImplementedError

    def version(self) -> int:
        return 0

    def max_context(self) -> int:
        return CONTEXT

    def rebuild(self) -> None:
        pass

    def close(self) -> None:
        pass


class Host:
    """Opens scripted engines, and remembers which. ``kill_after`` calls in all, the next one raises."""

    def __init__(self, kill_after: int | None = None, error: BaseException | None = None) -> None:
        self.opened: list[str] = []
        self.engines: list[ScriptedEngine] = []
        self.closed = 0
        self._left = kill_after
        self._error = error or KeyboardInterrupt()

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[Engine]:
        name = next(name for name in WORDS if resolve(name) == folder)
        engine = _Mortal(name, load_tokenizer(folder), self)
        self.opened.append(name)
        self.engines.append(engine)
        try:
            yield engine
        finally:
            self.closed += 1

    def live(self) -> None:
        if self._left is not None:
            if self._left == 0:
                self._left = None
                raise self._error
            self._left -= 1


class _Mortal(ScriptedEngine):
    def __init__(self, name: str, tokenizer: Any, host: Host) -> None:
        super().__init__(name, tokenizer)
        self._host = host

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        self._host.live()
        return super().generate(requests, params)
