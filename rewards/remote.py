"""Scores from a server."""

import time
from collections.abc import Callable, Sequence

from rewards.callables import prompt_form
from rewards.checks import checked_score
from rewards.endpoint import Endpoint, EndpointConfig
from rewards.types import Score
from rollouts.types import Rollout


class RemoteScorer:
    """Asks an endpoint for the reward of each completion; implements :class:`rewards.types.Scorer`.

    ``POST url`` with ``{"items": [{"prompt", "output", "reference"}]}`` answers ``{"items": [{"reward": 0.7} or
    {"error": "why not"}]}``, as many and in the same order. ``prompt`` is text where it is one user message, else a
    list of ``{"role", "content"}``; ``reference`` is the prompt's worked answer or null. What is no finite number
    becomes a failure of its item; errors of the whole endpoint are those of :class:`rewards.endpoint.Endpoint`.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self._endpoint = Endpoint(config, sleep)

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        items = [
            {"prompt": prompt_form(r.prompt), "output": completion.text, "reference": r.prompt.reference}
            for r in rollouts
            for completion in r.completions
        ]
        scores = iter(self._endpoint.numbers(items, "reward", checked_score))
        return [[next(scores) for _ in rollout.completions] for rollout in rollouts]

    def close(self) -> None:
        """Gives the connections back."""
        self._endpoint.close()
