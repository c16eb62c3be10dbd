"""A reward to learn from, and beside it a check that nothing learns from: the watch for over-optimisation."""

from collections.abc import Sequence
from typing import Any

from rewards.types import MeteredScorer, Score, ScoreFailure, Scorer
from rollouts.types import Origin, Rollout


class CheckedScorer:
    """Scores as ``scorer`` does; ``checker`` judges the same completions for the metrics alone.

    A completion is right when the checker's score reaches ``threshold``. Implements
    :class:`rewards.types.MeteredScorer`; the numbers are of the policy's own samples:

    - ``reward/verified_mean``: the share of right ones. It falls while the reward rises where the policy learns to
      please the reward and not to do what was asked (arXiv 2210.10760).
    - ``reward/verified_auc``: over all pairs of a right and a wrong completion of one prompt, the share in which the
      reward is higher for the right one, ties counting half. 1/2 says that the reward knows nothing of it. Missing
      where there is no such pair.
    """

    def __init__(self, scorer: Scorer, checker: Scorer, threshold: float) -> None:
        self._scorer = scorer
        self._checker = checker
        self._threshold = threshold
        self._measured: dict[str, float] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        scores = self._scorer.score(rollouts)
        self._measured = _compare(rollouts, scores, self._checker.score(rollouts), self._threshold)
        return scores

    def last_metrics(self) -> dict[str, float]:
        inner = self._scorer.last_metrics() if isinstance(self._scorer, MeteredScorer) else {}
        return {**inner, **self._measured}

    def state_dict(self) -> dict[str, Any]:
        return self._scorer.state_dict() if isinstance(self._scorer, MeteredScorer) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._scorer, MeteredScorer):
            self._scorer.load_state_dict(state)


def _compare(
    rollouts: Sequence[Rollout], scores: Sequence[Sequence[Score]], checks: Sequence[Sequence[Score]], threshold: float
) -> dict[str, float]:
    verdicts: list[bool] = []
    won = compared = 0.0
    for rollout, row, checked in zip(rollouts, scores, checks, strict=True):
        right: list[float] = []
        wrong: list[float] = []
        for completion, score, check in zip(rollout.completions, row, checked, strict=True):
            if completion.origin is Origin.REFERENCE or isinstance(check, ScoreFailure):
                continue
            verdicts.append(check >= threshold)
            if not isinstance(score, ScoreFailure):
                (right if check >= threshold else wrong).append(score)
        won += sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
        compared += len(right) * len(wrong)
    metrics: dict[str, float] = {}
    if verdicts:
        metrics["reward/verified_mean"] = sum(verdicts) / len(verdicts)
    if compared:
        metrics["reward/verified_auc"] = won / compared
    return metrics
