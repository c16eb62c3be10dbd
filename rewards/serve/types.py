"""What the scoring service takes, what it drives, and how it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem, Rendered
from rewards.types import ScoreFailure

__all__ = [
    "DeadlinePassed",
    "EngineFailure",
    "ItemScorer",
    "Limits",
    "Overloaded",
    "Rendered",
    "ServeItem",
    "ServiceClosed",
    "SwapFailed",
    "TooManyItems",
]

ServeItem = PolarItem | Rendered


class ItemScorer(Protocol):
    """What the service drives, from one thread that never changes: engines are not made for several.

    :class:`rewards.polar.scorer.PolarScorer` and :class:`rewards.serve.process.ProcessScorer` are such scorers.
    """

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        """A score or a failure for each item, in order. Raises ``ValueError`` for items that it cannot take, anything
        else when the engine has failed and must be rebuilt."""
        ...

    def rebuild(self) -> None:
        """Starts afresh from the same weights."""
        ...

    def close(self) -> None:
        """Frees memory and processes."""
        ...


@dataclass(frozen=True, slots=True)
class EngineFailure(ScoreFailure):
    """No score because the engine could not work, whatever the item: a later request may get one."""


class Overloaded(Exception):
    """The queue has no room. ``retry_after_s`` is when it should have, at the rate of the last batches."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class TooManyItems(ValueError):
    """The request cannot fit the queue even when it is empty: send it in parts."""


class DeadlinePassed(Exception):
    """The request's deadline came before its scores; what was still queued of it is not computed."""


class ServiceClosed(Exception):
    """The service takes no more work, or has ended before the request was answered."""


class SwapFailed(RuntimeError):
    """The new weights are not served, and the old ones still are; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes. ``max_item_chars`` bounds the texts of one item together."""

    max_body_bytes: int = 16 * 2**20
    max_items: int = 10_000
    max_item_chars: int = 1_000_000
    max_deadline_s: float = 3600.0
