"""One success model for several callers at once: whoever waits for the same is answered by the same forward pass."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from typing import Any, final

import numpy as np

from rewards.success.frames import LabelledFrames
from rewards.success.model import Probabilities, SuccessModel
from rollouts.envs.types import Observation, Task


@final
class _Request:
    """What one caller has asked for, and later its answer."""

    def __init__(self, observations: Observation, task: Task) -> None:
        self.observations, self.task = observations, task
        self.key = _key(observations, task)
        self.answer: Probabilities | None = None
        self.error: Exception | None = None

    @property
    def ready(self) -> bool:
        return self.answer is not None or self.error is not None

    def result(self) -> Probabilities:
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


@final
class BatchedModel:
    """Implements :class:`rewards.success.model.SuccessModel` over another one, for callers in any number of threads.

    The inner model does one thing at a time. Whoever comes while it is busy waits; of those who wait, all that ask
    about the task of the first one, with observations of the same keys, types and shapes, are answered together, by
    whoever finds the model free. There are no timers: a caller that is alone is answered at once, by the very call that
    it would have made itself. Rows of a larger batch may differ from that in the last bits.

    Where a batch fails, each of its requests is tried alone, so that an error reaches only whom it is about.
    """

    def __init__(self, model: SuccessModel) -> None:
        self._model = model
        self._changed = Condition()
        self._waiting: list[_Request] = []
        self._busy = False

    def probabilities(self, observations: Observation, task: Task) -> Probabilities:
        """See :class:`rewards.success.model.SuccessModel`."""
        request = _Request(observations, task)
        with self._changed:
            self._waiting.append(request)
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: request.ready or not self._busy)
                    if request.ready:
                        return request.result()
                    # The oldest first, even before one's own: nobody is overtaken for ever.
                    batch = [other for other in self._waiting if other.key == self._waiting[0].key]
                    self._waiting = [other for other in self._waiting if other not in batch]
                    self._busy = True
                self._serve(batch)
        finally:
            with self._changed:  # an interrupted caller leaves nothing behind for others to do
                self._waiting = [other for other in self._waiting if other is not request]

    def threshold(self, task: Task) -> float:
        """See :class:`rewards.success.model.SuccessModel`."""
        with self._alone():
            return self._model.threshold(task)

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        """See :class:`rewards.success.model.SuccessModel`; nobody is answered meanwhile."""
        with self._alone():
            return self._model.fit(frames)

    def save(self, folder: Path) -> None:
        """See :class:`rewards.success.model.SuccessModel`."""
        with self._alone():
            self._model.save(folder)

    def describe(self) -> Mapping[str, Any]:
        """The inner model's; see :class:`rewards.success.model.SuccessModel`."""
        with self._alone():
            return self._model.describe()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        try:
            yield
        finally:
            self._release([])

    def _serve(self, batch: Sequence[_Request]) -> None:
        try:
            self._answer(batch)
        finally:
            self._release([request for request in batch if not request.ready])

    def _release(self, unanswered: Sequence[_Request]) -> None:
        """The model is free; what an interrupt has left undone is somebody else's to do."""
        with self._changed:
            self._waiting[:0] = unanswered
            self._busy = False
            self._changed.notify_all()

    def _answer(self, batch: Sequence[_Request]) -> None:
        if len(batch) > 1 and self._answer_together(batch):
            return
        for request in batch:
            try:
                request.answer = self._model.probabilities(request.observations, request.task)
            except Exception as error:
                request.error = error

    def _answer_together(self, batch: Sequence[_Request]) -> bool:
        """Answers requests of one key by one forward pass; False, and nobody is answered, where that fails."""
        looks = [request.observations for request in batch]
        sizes = [len(next(iter(look.values()))) for look in looks]
        try:
            together = {name: np.concatenate([look[name] for look in looks]) for name in looks[0]}
            found = self._model.probabilities(together, batch[0].task)
        except Exception:  # perhaps of one request alone: each meets its own when it is tried by itself
            return False
        if found.shape != (sum(sizes),):
            return False
        for request, part in zip(batch, np.split(found, np.cumsum(sizes)[:-1]), strict=True):
            request.answer = part.copy()  # a caller may write to it, and keep it without the whole batch
        return True


def _key(observations: Observation, task: Task) -> Hashable:
    """What requests of one forward pass have in common; an object like no other where the first axes disagree, since
    rows that are missing from one array would shift everybody else's."""
    lengths = {array.shape[:1] for array in observations.values()}
    if len(lengths) != 1 or () in lengths:
        return object()
    return task, frozenset((name, array.dtype, array.shape[1:]) for name, array in observations.items())
