"""Stand-ins for the parts that an offline run does not have; the loop stays the same."""

from collections.abc import Sequence
from typing import Any, NoReturn

from rollouts.types import WeightUpdate


class NoExperience:
    """Collector and labeller of a run whose every step is offline: nothing is sampled, nothing is judged.

    Implements :class:`align.protocols.Collector` and :class:`align.protocols.Labeller`.
    """

    def collect(self, step: int) -> NoReturn:
        raise RuntimeError(f"step {step} is online, and this run has no engine to collect with")

    def label(self, experience: Sequence[Any], step: int) -> NoReturn:
        raise RuntimeError(f"step {step} is online, and this run has nothing to judge with")

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        """Nobody is waiting for weights."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class NoEvaluation:
    """Evaluator of a run without held-out prompts; implements :class:`align.protocols.Evaluator`."""

    def evaluate(self, step: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
