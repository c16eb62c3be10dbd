"""Samples for people: what was asked, what was answered, what it earned, and which side of a pair it became."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from align.protocols import Metrics
from rewards.types import MeteredScorer, Score, ScoredPair, ScoreFailure, Scorer
from rollouts.types import Rollout


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One completion. ``verdict`` is chosen, rejected or empty.

    ``reward`` is ``None`` where there is no score: scoring failed, or a judge compared completions without scoring any.
    """

    prompt: str
    completion: str
    reward: float | None
    origin: str
    verdict: str
    tokens: int
    finish: str
    policy_version: int


def sample_rows(
    rollouts: Sequence[Rollout], scores: Sequence[Sequence[Score]] | None, pairs: Sequence[ScoredPair], limit: int
) -> list[SampleRow]:
    """The completions of the first ``limit`` rollouts; ``scores[i][g]`` belongs to ``rollouts[i].completions[g]``.

    ``scores`` is ``None`` where a judge made the pairs. Only the last message of a prompt is kept: it is the
    question, what stands before it is the same for all.
    """
    rows: Sequence[Sequence[Score | None]]
    rows = [[None] * len(rollout.completions) for rollout in rollouts] if scores is None else scores
    # Completions are matched as objects, not by value: two equal samples of one prompt need not share a verdict.
    verdicts = {id(pair.chosen): "chosen" for pair in pairs} | {id(pair.rejected): "rejected" for pair in pairs}
    return [
        SampleRow(
            prompt=rollout.prompt.messages[-1].content if rollout.prompt.messages else "",
            completion=completion.text,
            reward=None if score is None or isinstance(score, ScoreFailure) else float(score),
            origin=str(completion.origin),
            verdict=verdicts.get(id(completion), ""),
            tokens=len(completion.token_ids),
            finish=str(completion.finish),
            policy_version=completion.policy_version,
        )
        for rollout, row in zip(rollouts[:limit], rows[:limit], strict=True)
        for completion, score in zip(rollout.completions, row, strict=True)
    ]


class WatchedScorer:
    """A scorer that remembers the scores it last gave; implements :class:`rewards.types.MeteredScorer`."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.last: tuple[Sequence[Rollout], list[list[Score]]] = ((), [])

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        scores = self._scorer.score(rollouts)
        self.last = (rollouts, scores)
        return scores

    def last_metrics(self) -> dict[str, float]:
        return self._scorer.last_metrics() if isinstance(self._scorer, MeteredScorer) else {}

    def state_dict(self) -> dict[str, Any]:
        return self._scorer.state_dict() if isinstance(self._scorer, MeteredScorer) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._scorer, MeteredScorer):
            self._scorer.load_state_dict(state)


class PairLabeller(Protocol):
    """The labeller of :mod:`align.protocols`, for text."""

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[Sequence[ScoredPair], Metrics]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class WatchedLabeller:
    """Labels as ``labeller`` does, and shows the samples of ``limit`` prompts to ``observe``.

    That happens at step 1 and every ``every`` steps; 0 is never. ``scorer`` is the one that ``labeller`` scores with,
    or ``None`` where it asks a judge: rows then have a verdict and no reward. The state is the inner labeller's own.
    """

    def __init__(
        self,
        labeller: PairLabeller,
        scorer: WatchedScorer | None,
        observe: Callable[[Sequence[SampleRow]], None],
        every: int,
        limit: int = 4,
    ) -> None:
        self._labeller, self._scorer, self._observe = labeller, scorer, observe
        self._every, self._limit = every, limit

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[Sequence[ScoredPair], Metrics]:
        pairs, metrics = self._labeller.label(experience, step)
        if self._every > 0 and (step == 1 or step % self._every == 0):
            rollouts, scores = (experience, None) if self._scorer is None else self._scorer.last
            self._observe(sample_rows(rollouts, scores, pairs, self._limit))
        return pairs, metrics

    def state_dict(self) -> dict[str, Any]:
        return self._labeller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._labeller.load_state_dict(state)
