"""Scores from a server."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rewards.callables import prompt_form
from rewards.endpoint import EndpointConfig
from rewards.errors import BadRequest, ProtocolError, RewardError
from rewards.serve.client import RewardClient
from rewards.types import Score, ScoreFailure
from rollouts.types import Prompt, Rollout


class RemoteScorer:
    """Asks a reward server about each completion; implements :class:`rewards.types.Scorer`.

    The server speaks the contract of ``align serve``; ``config.url`` is its root or its whole ``/v1/score`` path.
    ``POST {root}/v1/score`` with ``{"items": [{"prompt", "reference", "output"}]}`` answers ``{"data": [{"index": 0,
    "reward": 0.7} or {"index": 0, "error": {"code", "message"}}]}``, as many and in the same order. ``prompt`` is text
    where it is one user message, else a list of ``{"role", "content"}``; ``reference`` is the prompt's worked answer,
    null where it has none: a server of another kind than ours may do without.

    Raises the errors of :class:`rewards.serve.client.RewardClient`, but for an answer that breaks the contract: that is
    no reason to end a run, and a failure of each item of its batch.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self._size = config.batch_size
        self._client = RewardClient(
            config.url,
            patience=config.patience(),
            token_env=config.token_env,
            batch_items=config.batch_size,
            sleep=sleep,
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        prompts = [rollout.prompt for rollout in rollouts for _ in rollout.completions]
        items = [
            {"prompt": prompt_form(r.prompt), "reference": r.prompt.reference, "output": completion.text}
            for r in rollouts
            for completion in r.completions
        ]
        scores = iter(
            [
                score
                for start in range(0, len(items), self._size)
                for score in self._batch(items[start : start + self._size], prompts[start : start + self._size])
            ]
        )
        return [[next(scores) for _ in rollout.completions] for rollout in rollouts]

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def _batch(self, items: Sequence[dict[str, Any]], prompts: Sequence[Prompt]) -> list[Score]:
        try:
            return [answer.score for answer in self._client.score_payloads(items)]
        except ProtocolError as error:
            return [ScoreFailure(str(error))] * len(items)
        except BadRequest as error:
            if error.item is None or not 0 <= error.item < len(prompts) or prompts[error.item].reference is not None:
                raise
            raise RewardError(
                f"{error}; prompt {prompts[error.item].id!r} has no reference: this server may need one for every "
                "prompt (reference_field), or such prompts must be left out"
            ) from error
