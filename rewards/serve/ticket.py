"""What a request holds while it waits: a place in a lane, and the scores that have come."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import final

from rewards.polar.scorer import ItemScore
from rewards.serve.batcher import BatchQueue, Job
from rewards.serve.types import ServiceClosed


@dataclass(eq=False, slots=True)
class Lane:
    """The requests that one version of the weights scores. ``version`` is None until those weights serve."""

    version: int | None
    queue: BatchQueue = field(default_factory=BatchQueue)


@final
class Ticket:
    """A request that was taken: iterate over it for its scores, in order, as they become ready.

    The iteration raises :class:`rewards.serve.types.DeadlinePassed` or :class:`rewards.serve.types.ServiceClosed` when
    the request ends that way. Use it in a ``with`` block: leaving that gives the places of what is still queued back,
    and none of it is computed any more.
    """

    def __init__(self, job: Job, lane: Lane, current_version: int) -> None:
        self._job, self._lane, self._current_version = job, lane, current_version

    @property
    def weight_version(self) -> int:
        """The version of the weights that score this request, all of it; certain once the first score is there."""
        return self._current_version if self._lane.version is None else self._lane.version

    def __aiter__(self) -> AsyncIterator[ItemScore]:
        return self._job.scores()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *exception: object) -> None:
        self._job.fail(ServiceClosed("the request was cancelled"))
