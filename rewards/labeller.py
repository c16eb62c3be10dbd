"""From scores to preference pairs."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from rewards.contests import Contest, Label, Missed, PairLedger, Ties, sigmoid
from rewards.types import MeteredScorer, Score, ScoredPair, ScoreFailure, Scorer
from rollouts.types import Completion, Origin, Rollout


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """How pairs are made of scores.

    ``label``: ``argmax`` prefers the higher score; ``bradley_terry`` draws the winner with probability
    ``sigmoid(difference / temperature)``, the oracle of the XPO paper; ``soft`` prefers the higher score and gives the
    loss that probability. More in :data:`rewards.contests.Label`.
    ``pairing``: ``reference`` sets one policy sample against the reference sample, as in Algorithm 1, and takes that
    policy sample of the group whose score lies farthest from the reference's, since single pairs are mostly ties;
    ``best_worst`` sets the best of all samples against the worst; ``both`` makes the pair with the reference sample and
    one of the policy's best against its worst; ``random`` sets the policy's first two samples against each other,
    whatever their scores: both are draws of the same policy, as online DPO and the on-policy form of XPO have them.
    ``ties``: ``drop`` leaves out pairs of equal score, ``random`` lets a coin decide. Scores are equal when they differ
    by at most ``tie_tolerance`` (units of the reward).

    Raises ``ValueError`` when ``temperature`` is not above 0 or ``tie_tolerance`` is below 0.
    """

    label: Label = "argmax"
    temperature: float = 1.0
    pairing: Literal["reference", "best_worst", "both", "random"] = "reference"
    ties: Ties = "drop"
    seed: int = 0
    tie_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not self.tie_tolerance >= 0:
            raise ValueError(f"tie_tolerance must be at least 0, got {self.tie_tolerance}")


@dataclass(frozen=True, slots=True)
class _Candidate:
    completion: Completion
    score: float


class PairLabeller:
    """Scores rollouts and makes a pair of each, two with ``both``; implements :class:`align.protocols.Labeller`.

    Every pair that could be is accounted for: :class:`rewards.contests.PairLedger`.
    """

    def __init__(self, scorer: Scorer, config: LabelConfig) -> None:
        self._scorer = scorer
        self._config = config
        self._ledger = PairLedger(config.label, config.ties)

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[list[ScoredPair], dict[str, float]]:
        scores = self._scorer.score(experience)
        contests: list[Contest | Missed] = []
        for rollout, row in zip(experience, scores, strict=True):
            if len(row) != len(rollout.completions):
                raise ValueError(f"the scorer gave {len(row)} scores for {len(rollout.completions)} completions")
            contests += [self._contest(rollout, candidates) for candidates in self._candidates(rollout, row)]
        pairs, metrics = self._ledger.settle(contests, step, random.Random(f"{self._config.seed}:{step}"))
        measured = self._scorer.last_metrics() if isinstance(self._scorer, MeteredScorer) else {}
        return pairs, {**_reward_metrics(experience, scores), **measured, **metrics}

    def state_dict(self) -> dict[str, Any]:
        scorer = self._scorer.state_dict() if isinstance(self._scorer, MeteredScorer) else {}
        return {"ledger": self._ledger.state_dict(), "scorer": scorer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ledger.load_state_dict(state["ledger"])
        if isinstance(self._scorer, MeteredScorer):
            self._scorer.load_state_dict(state["scorer"])

    def _contest(self, rollout: Rollout, candidates: tuple[_Candidate, _Candidate] | None) -> Contest | Missed:
        if candidates is None:
            return "failed"
        first, second = candidates
        if first.completion.token_ids == second.completion.token_ids:
            return "identical"
        margin = first.score - second.score
        return Contest(
            rollout=rollout,
            first=first.completion,
            second=second.completion,
            margin=margin,
            probability=sigmoid(margin / self._config.temperature),
            tied=abs(margin) <= self._config.tie_tolerance,
        )

    def _candidates(self, rollout: Rollout, row: Sequence[Score]) -> list[tuple[_Candidate, _Candidate] | None]:
        """The completions of each pair to make, in an order that says nothing; None where scores are missing."""
        scored = [_Candidate(c, s) for c, s in zip(rollout.completions, row, strict=True) if _is_number(s)]
        references = [c for c in scored if c.completion.origin is Origin.REFERENCE]
        ours = [c for c in scored if c.completion.origin is not Origin.REFERENCE]
        match self._config.pairing:
            case "reference":
                return [_against_reference(ours, references)]
            case "best_worst":
                return [_best_and_worst(scored)]
            case "random":
                return [(ours[0], ours[1]) if len(ours) > 1 else None]
            case "both":
                return [_against_reference(ours, references), _best_and_worst(ours)]


def _against_reference(
    ours: Sequence[_Candidate], references: Sequence[_Candidate]
) -> tuple[_Candidate, _Candidate] | None:
    if not references or not ours:
        return None
    reference = references[0]
    return max(ours, key=lambda c: abs(c.score - reference.score)), reference


def _best_and_worst(scored: Sequence[_Candidate]) -> tuple[_Candidate, _Candidate] | None:
    if len(scored) < 2:
        return None
    best = max(scored, key=lambda c: c.score)
    # The policy's samples come first, and the first of equals is taken: its own mistakes teach it most. That decides
    # who takes part, never who wins: the winner goes by the scores, and among equals by a coin.
    return best, min((c for c in scored if c is not best), key=lambda c: c.score)


def _is_number(score: Score) -> TypeGuard[float]:
    return not isinstance(score, ScoreFailure) and math.isfinite(score)


def _reward_metrics(experience: Sequence[Rollout], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Means over the policy's own completions; the reference's are reported beside them, never mixed in."""
    ours: list[float] = []
    theirs: list[float] = []
    spreads: list[float] = []
    for rollout, row in zip(experience, scores, strict=True):
        numbers = [(c.origin, s) for c, s in zip(rollout.completions, row, strict=True) if _is_number(s)]
        group = [s for origin, s in numbers if origin is not Origin.REFERENCE]
        ours += group
        theirs += [s for origin, s in numbers if origin is Origin.REFERENCE]
        if group:
            spreads.append(max(group) - min(group))
    metrics: dict[str, float] = {}
    if ours:
        mean = sum(ours) / len(ours)
        metrics["reward/mean"] = mean
        metrics["reward/std"] = math.sqrt(sum((s - mean) ** 2 for s in ours) / len(ours))
        metrics["reward/frac_zero_std"] = sum(s == 0 for s in spreads) / len(spreads)
    if theirs:
        metrics["reward/reference_mean"] = sum(theirs) / len(theirs)
    return metrics
