"""The parts that the loop sees, and nothing else. Text and robots implement the same six.

Every part is a small final class that carries its state, so that a run is one state.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from rollouts.types import WeightUpdate

ExperienceT = TypeVar("ExperienceT")
LabelledT = TypeVar("LabelledT")
BatchT = TypeVar("BatchT")
ExperienceT_co = TypeVar("ExperienceT_co", covariant=True)
ExperienceT_contra = TypeVar("ExperienceT_contra", contravariant=True)
LabelledT_co = TypeVar("LabelledT_co", covariant=True)
LabelledT_contra = TypeVar("LabelledT_contra", contravariant=True)
BatchT_co = TypeVar("BatchT_co", covariant=True)
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)

Metrics = Mapping[str, float]


class Stateful(Protocol):
    """A part whose state is a plain dictionary of tensors, numbers, strings and containers of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Collector(Stateful, Protocol[ExperienceT_co]):
    """Experience from the current policy: completions or episodes."""

    def collect(self, step: int) -> tuple[Sequence[ExperienceT_co], Metrics]: ...

    def load_weights(self, update: WeightUpdate) -> Metrics: ...


class Labeller(Stateful, Protocol[ExperienceT_contra, LabelledT_co]):
    """Judgement: rollouts become scored pairs, episodes become labelled episodes."""

    def label(self, experience: Sequence[ExperienceT_contra], step: int) -> tuple[Sequence[LabelledT_co], Metrics]: ...


class Mixer(Stateful, Protocol[LabelledT_contra, BatchT_co]):
    """All experience so far, online and offline; decides what a learner sees next."""

    def add(self, labelled: Sequence[LabelledT_contra]) -> None: ...

    def batches(self, step: int) -> Sequence[BatchT_co]: ...


class Learner(Stateful, Protocol[BatchT_contra]):
    """Turns a batch into an update, and publishes its weights."""

    def update(self, batch: BatchT_contra) -> Metrics: ...

    def weights(self) -> WeightUpdate: ...


class Evaluator(Stateful, Protocol):
    """Measures the policy that the collector now holds, on data that nothing was trained on."""

    def evaluate(self, step: int) -> Metrics: ...


class Tracker(Stateful, Protocol):
    """Keeps the numbers: console, ``metrics.jsonl``, W&B."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds the wall time spent inside to ``timing_s/<name>`` of the current step."""
        ...

    def log(self, step: int, *metrics: Metrics) -> None:
        """Ends the step: several updates' metrics are averaged per name."""
        ...
