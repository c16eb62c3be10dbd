"""What the sync and the async client have in common: where they ask, in what parts, and what answers mean."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from rewards.endpoint import check_url
from rewards.errors import BadRequest, ProtocolError, RewardError, Timeout, Unauthorized
from rewards.failures import explained
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.wire import Identity, Pair, PairScore, Question, chunks, pair_payload, read_pair, read_score
from rewards.transport import Deadline, Patience
from rewards.types import Score, ScoreFailure
from rollouts.types import Rollout

T = TypeVar("T")

BATCH_ITEMS = 256
BATCH_BYTES = 4 * 2**20
PROBE_S = 5.0
"""So long one look at ``/ready`` may take."""
SCORE, COMPARE, MODELS, READY = "/v1/score", "/v1/compare", "/v1/models", "/ready"


def server_root(url: str) -> str:
    """``url`` without the path of the native contract, with which it may end."""
    return url.rstrip("/").removesuffix(SCORE).rstrip("/")


class Settings:
    """What a client is told, and the requests that it makes of it."""

    def __init__(self, url: str, model: str | None, patience: Patience, batch_items: int, batch_bytes: int) -> None:
        check_url(url)
        if min(batch_items, batch_bytes) <= 0:
            raise RewardError(f"{url}: batch_items and batch_bytes must be above 0")
        self.root = server_root(url)
        self.model = model
        self.patience = patience.checked(url)
        self._batch_items, self._batch_bytes = batch_items, batch_bytes

    def deadline(self, seconds: float | None) -> Deadline:
        """That of a call that gave one, else the client's own."""
        return Deadline(self.patience.deadline_s if seconds is None else seconds)

    def scores(self, payloads: Sequence[Mapping[str, Any]], deadline: Deadline) -> list[Question[ItemScore]]:
        """The requests that score items."""
        return self._questions(SCORE, "items", payloads, read_score, deadline)

    def comparisons(self, pairs: Sequence[Pair], deadline: Deadline) -> list[Question[PairScore]]:
        """The requests that compare pairs."""
        return self._questions(COMPARE, "pairs", [pair_payload(pair) for pair in pairs], read_pair, deadline)

    def _questions(
        self,
        path: str,
        key: Literal["items", "pairs"],
        payloads: Sequence[Mapping[str, Any]],
        read: Callable[[Mapping[str, Any]], T],
        deadline: Deadline,
    ) -> list[Question[T]]:
        texts = [json.dumps(payload).encode() for payload in payloads]
        return [
            Question(
                self.root + path,
                key,
                texts[part.start : part.stop],
                read,
                model=self.model,
                deadline=deadline,
                start=part.start,
            )
            for part in chunks(texts, self._batch_items, self._batch_bytes)
        ]


def rollout_items(rollouts: Sequence[Rollout]) -> list[PolarItem]:
    """Each completion against the worked answer of its prompt; those of prompts without one are left out."""
    return [
        PolarItem(rollout.prompt.messages, rollout.prompt.reference, completion.text)
        for rollout in rollouts
        if rollout.prompt.reference is not None
        for completion in rollout.completions
    ]


def rollout_scores(rollouts: Sequence[Rollout], scores: Iterator[ItemScore]) -> list[list[Score]]:
    """The scores of :func:`rollout_items` in their places, and failures where there is no worked answer."""
    return [
        [
            ScoreFailure("the prompt has no reference") if rollout.prompt.reference is None else next(scores).score
            for _ in rollout.completions
        ]
        for rollout in rollouts
    ]


def read_models(url: str, answer: bytes) -> list[dict[str, Any]]:
    """The entries of a list of models."""
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{url} answered with something that is not JSON") from error
    models = body.get("data") if isinstance(body, dict) else None
    if not isinstance(models, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in models):
        raise ProtocolError(f'{url} answered without a list "data" of models')
    return models


def identity_of(name: str | None, models: Sequence[Mapping[str, Any]]) -> Identity:
    """That of the model ``name``; of the first where no name is asked for."""
    for model in models:
        if name in (None, model["id"]):
            weights = model.get("weight_version")
            return Identity(model["id"], weights if isinstance(weights, int | str) else None)
    return Identity(name, None)


def probe_s(deadline: Deadline) -> float:
    """How long the next look may take. The last one gets a second, so that it can tell what is in the way."""
    left = deadline.remaining()
    return PROBE_S if left is None else min(PROBE_S, max(left, 1.0))


def check_waiting(url: str, status: int | None, text: str, deadline: Deadline) -> None:
    """Raises where waiting for readiness cannot help, or has lasted long enough."""
    reason = text if status is None else f"answered {status}"
    said = "" if status is None else explained(text.encode())[0]
    shown = f"{url} {reason}{f' ({said})' if said else ''}"
    if status in (401, 403):
        raise Unauthorized(f"{shown}: check the token and token_env")
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        raise BadRequest(f"{shown}: check the URL")
    if deadline.remaining() == 0:
        raise Timeout(f"{shown}, after {deadline.seconds:g} s: check that the server runs, or wait longer")
