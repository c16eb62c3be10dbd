"""POLAR as the reward of a run: each completion against its prompt's references."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from rewards.errors import RewardError
from rewards.normalise import Kind, Normaliser, is_number
from rewards.polar.types import PolarItem
from rewards.polar.variants import ScoreFunction
from rewards.types import Score, ScoreFailure
from rollouts.types import Prompt, Rollout

Combine = Literal["mean", "max"]
"""Over the references of one prompt. ``max``: it is enough to look like one of them."""


class ScoredItem(Protocol):
    """What became of an item: its score, which of prompt, reference and output were cut, and the tokens not computed
    because they were shared with other items."""

    @property
    def score(self) -> Score: ...

    @property
    def truncated(self) -> frozenset[str]: ...

    @property
    def cached_tokens(self) -> int: ...


def references_of(prompt: Prompt) -> list[str]:
    """``prompt.reference``, then ``metadata["references"]`` where it is a list of texts; blank and repeated ones left
    out."""
    more = prompt.metadata.get("references")
    texts = more if isinstance(more, list | tuple) and all(isinstance(text, str) for text in more) else ()
    return list(dict.fromkeys(text for text in (prompt.reference or "", *texts) if text.strip()))


def plain_scores(score_items: Callable[[Sequence[PolarItem]], Sequence[ScoredItem]]) -> ScoreFunction:
    """The same function giving scores alone, as :func:`rewards.polar.evaluate.evaluate` wants it."""

    def scores(items: Sequence[PolarItem]) -> list[Score]:
        return [item.score for item in score_items(items)]

    return scores


class PolarReward:
    """Scores completions by how much their policy looks like that of the references; implements
    :class:`rewards.types.Scorer`.

    ``score_items`` is :meth:`rewards.polar.scorer.PolarScorer.score_items` or anything of its form: N items in, N out,
    in order. ``references`` finds a prompt's references. With several, ``combine`` is taken over those whose item has a
    finite score; where none has, the completion fails with the first reason. A prompt without references fails as a
    whole. The prompt is given as its messages, a system turn only where it is one of them.

    What is handed on is normalised (:class:`rewards.normalise.Normaliser`); :meth:`last_metrics` tells the raw scores.
    """

    def __init__(
        self,
        score_items: Callable[[Sequence[PolarItem]], Sequence[ScoredItem]],
        references: Callable[[Prompt], Sequence[str]] = references_of,
        combine: Combine = "mean",
        normalise: Kind = "none",
    ) -> None:
        if combine not in ("mean", "max"):
            raise RewardError(f"combine '{combine}' is unknown; use mean or max")
        self._score_items = score_items
        self._references = references
        self._combine: Combine = combine
        self._normaliser = Normaliser(normalise)
        self._metrics: dict[str, float] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        references = [list(self._references(rollout.prompt)) for rollout in rollouts]
        # Items of one prompt and reference stand together: a scorer that shares prefixes need not look for them.
        items = [
            PolarItem(rollout.prompt.messages, reference, completion.text)
            for rollout, texts in zip(rollouts, references, strict=True)
            for reference in texts
            for completion in rollout.completions
        ]
        scored = list(self._score_items(items)) if items else []
        if len(scored) != len(items):
            raise RewardError(f"the POLAR scorer gave {len(scored)} scores for {len(items)} items")
        answers = iter(scored)
        raw = [self._row(len(r.completions), len(t), answers) for r, t in zip(rollouts, references, strict=True)]
        self._metrics = _metrics(raw, scored)
        return self._normaliser.normalise(raw)

    def last_metrics(self) -> dict[str, float]:
        """Of the last call: ``reward/raw_mean``, ``raw_std`` (population), ``raw_min`` and ``raw_max`` over completions
        with a score; ``reward/failed``, the completions without one; ``reward/truncated_fraction``, the share of items
        (one for each reference and completion) that lost text; and ``reward/cached_token_fraction``, where the items
        have a number of ``tokens``. A name is absent where there was nothing to measure."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"normaliser": self._normaliser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._normaliser.load_state_dict(state["normaliser"])

    def _row(self, completions: int, references: int, answers: Iterator[ScoredItem]) -> list[Score]:
        if not references:
            return [ScoreFailure("the prompt has no reference")] * completions
        table = [[next(answers).score for _ in range(completions)] for _ in range(references)]
        return [self._combined(column) for column in zip(*table, strict=True)]

    def _combined(self, scores: Sequence[Score]) -> Score:
        numbers = [score for score in scores if is_number(score)]
        if numbers:
            return max(numbers) if self._combine == "max" else math.fsum(numbers) / len(numbers)
        first = scores[0]
        return first if isinstance(first, ScoreFailure) else ScoreFailure(f"the score is {first}, not a finite number")


def _metrics(raw: Sequence[Sequence[Score]], items: Sequence[ScoredItem]) -> dict[str, float]:
    scores = [score for row in raw for score in row]
    numbers = [score for score in scores if is_number(score)]
    metrics = {"reward/failed": float(len(scores) - len(numbers))}
    if numbers:
        mean = math.fsum(numbers) / len(numbers)
        metrics["reward/raw_mean"] = mean
        metrics["reward/raw_std"] = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers))
        metrics["reward/raw_min"] = min(numbers)
        metrics["reward/raw_max"] = max(numbers)
    if items:
        metrics["reward/truncated_fraction"] = sum(bool(item.truncated) for item in items) / len(items)
    tokens = sum(getattr(item, "tokens", 0) for item in items)
    if tokens:
        metrics["reward/cached_token_fraction"] = sum(item.cached_tokens for item in items) / tokens
    return metrics
