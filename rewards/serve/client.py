"""Clients of a reward server: scores or typed errors, never a short list and never a default number.

Both raise :class:`rewards.errors.RewardError`: ``Unauthorized``, ``BadRequest``, ``Overloaded``, ``Timeout``,
``ServerError`` or ``ProtocolError``. What goes wrong with a single item is a ``ScoreFailure`` in its place.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from rewards.endpoint import Body
from rewards.errors import BadRequest
from rewards.failures import bearer
from rewards.polar.scorer import ItemScore
from rewards.serve.async_client import AsyncRewardClient
from rewards.serve.requests import (
    BATCH_BYTES,
    BATCH_ITEMS,
    MODELS,
    PROBE_S,
    READY,
    Settings,
    check_waiting,
    identity_of,
    probe_s,
    read_models,
    rollout_items,
    rollout_scores,
)
from rewards.serve.types import ServeItem
from rewards.serve.wire import Identity, Pair, PairScore, Question, item_payload
from rewards.transport import PATIENCE, Deadline, Patience, Transport
from rewards.types import Score
from rollouts.types import Rollout

__all__ = ["AsyncRewardClient", "Identity", "Pair", "PairScore", "Patience", "RewardClient"]

T = TypeVar("T")


class RewardClient:
    """A reward server as a scorer; implements :class:`rewards.types.Scorer`, and its ``score_items`` is that of
    :class:`rewards.polar.scorer.PolarScorer`, so that it goes where that goes.

    ``url`` is the server's root, or its whole ``/v1/score`` path. ``token_env`` names the environment variable that
    holds the bearer token. A call may be of any length: up to ``batch_items`` items and ``batch_bytes`` bytes go into
    one request, one request after the other over kept connections. A context manager.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        token_env: str | None = None,
        patience: Patience = PATIENCE,
        batch_items: int = BATCH_ITEMS,
        batch_bytes: int = BATCH_BYTES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = Settings(url, model, patience, batch_items, batch_bytes)
        self._transport = Transport(patience, bearer(url, token_env), sleep)
        self._identity: Identity | None = None

    def score_items(self, items: Sequence[ServeItem], *, deadline_s: float | None = None) -> list[ItemScore]:
        """A score or a failure for each item, in order. ``deadline_s`` bounds this call; the server is told."""
        return self.score_payloads([item_payload(item) for item in items], deadline_s=deadline_s)

    def score_payloads(
        self, payloads: Sequence[Mapping[str, Any]], *, deadline_s: float | None = None
    ) -> list[ItemScore]:
        """:meth:`score_items` for items in the form that they travel in."""
        scores: list[ItemScore] = []
        for question in self._settings.scores(payloads, self._settings.deadline(deadline_s)):
            scores += self._whole(question)
        return scores

    def stream(self, items: Sequence[ServeItem], *, deadline_s: float | None = None) -> Iterator[ItemScore]:
        """The same scores one by one, as soon as the server has them; after a break only the rest is asked for."""
        payloads = [item_payload(item) for item in items]
        for question in self._settings.scores(payloads, self._settings.deadline(deadline_s)):
            for _ in self._run(question):
                yield from question.take()
            yield from question.take()

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        """Each completion against its prompt's worked answer; without one it is a failure."""
        return rollout_scores(rollouts, iter(self.score_items(rollout_items(rollouts))))

    def compare(self, pairs: Sequence[Pair], *, deadline_s: float | None = None) -> list[PairScore]:
        """How probable it is that the first of each pair is better, in order."""
        scores: list[PairScore] = []
        for question in self._settings.comparisons(pairs, self._settings.deadline(deadline_s)):
            scores += self._whole(question)
        return scores

    def models(self) -> list[dict[str, Any]]:
        """What the server serves, as it tells it; ``id`` is the name."""
        body = Body("GET")
        url = self._settings.root + MODELS
        for _ in self._transport.run(url, body, self._settings.deadline(None)):
            pass
        return read_models(url, body.answer)

    def identity(self) -> Identity:
        """Who gave the last scores; who will, where none have been asked for yet."""
        return self._identity or identity_of(self._settings.model, self.models())

    def ready(self) -> bool:
        """Whether the server answers, and puts its canary pair in the right order. One try."""
        return self._transport.status(self._settings.root + READY, PROBE_S)[0] == 200

    def wait_until_ready(self, timeout_s: float = 300.0, every_s: float = 0.5) -> None:
        """Returns when the server is ready; :class:`Timeout` says what was in the way."""
        url, deadline = self._settings.root + READY, Deadline(timeout_s)
        while True:
            status, text = self._transport.status(url, probe_s(deadline))
            if status == 200:
                return
            check_waiting(url, status, text, deadline)
            time.sleep(min(every_s, deadline.remaining() or 0.0))

    def close(self) -> None:
        """Gives the connections back."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _whole(self, question: Question[T]) -> list[T]:
        for _ in self._run(question):
            pass
        return question.take()

    def _run(self, question: Question[Any]) -> Iterator[None]:
        try:
            yield from self._transport.run(question.url, question, question.deadline)
        except BadRequest as error:
            raise question.located(error) from None
        self._identity = question.identity
