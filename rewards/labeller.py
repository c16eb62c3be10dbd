"""From scores to preference pairs."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.types import Score, ScoredPair, ScoreFailure, Scorer
from rollouts.types import Completion, Origin, Rollout


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """How pairs are made.

    ``label``: ``argmax`` prefers the higher score; ``bradley_terry`` draws the winner with probability
    ``sigmoid(difference / temperature)``, the oracle of the XPO paper.
    ``pairing``: ``reference`` sets one policy sample against the reference sample, as in Algorithm 1, and takes that
    policy sample of the group whose score lies farthest from the reference's, since single pairs are mostly ties;
    ``best_worst`` sets the best of all samples against the worst; ``both`` makes the pair with the reference sample and
    one of the policy's best against its worst.
    ``ties``: ``drop`` leaves out pairs of equal score, ``random`` lets a coin decide.
    """

    label: Literal["argmax", "bradley_terry"] = "argmax"
    temperature: float = 1.0
    pairing: Literal["reference", "best_worst", "both"] = "reference"
    ties: Literal["drop", "random"] = "drop"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Candidate:
    completion: Completion
    score: float


class PairLabeller:
    """Scores rollouts and makes a pair of each, two with ``both``; implements :class:`align.protocols.Labeller`.

    Every pair that could be ends in exactly one of four columns, which add up: ``label/pairs``, ``label/ties``,
    ``label/identical`` (the two completions are the same tokens) and ``label/failed`` (no two scores).
    """

    def __init__(self, scorer: Scorer, config: LabelConfig) -> None:
        self._scorer = scorer
        self._config = config
        self._ledger: dict[str, int] = {"pairs": 0, "ties": 0, "identical": 0, "failed": 0}

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[list[ScoredPair], dict[str, float]]:
        scores = self._scorer.score(experience)
        rng = random.Random(f"{self._config.seed}:{step}")
        pairs: list[ScoredPair] = []
        ends = dict.fromkeys(self._ledger, 0)
        for rollout, row in zip(experience, scores, strict=True):
            if len(row) != len(rollout.completions):
                raise ValueError(f"the scorer gave {len(row)} scores for {len(rollout.completions)} completions")
            for candidates in self._candidates(rollout, row):
                made = self._pair(rollout, candidates, step, rng)
                ends[made if isinstance(made, str) else "pairs"] += 1
                if not isinstance(made, str):
                    pairs.append(made)
        for end, count in ends.items():
            self._ledger[end] += count
        return pairs, {**_reward_metrics(experience, scores), **_label_metrics(ends, pairs)}

    def state_dict(self) -> dict[str, Any]:
        return {"ledger": dict(self._ledger)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ledger = dict(state["ledger"])

    def _pair(
        self, rollout: Rollout, candidates: tuple[_Candidate, _Candidate] | None, step: int, rng: random.Random
    ) -> ScoredPair | str:
        if candidates is None:
            return "failed"
        first, second = candidates
        if first.completion.token_ids == second.completion.token_ids:
            return "identical"
        difference = first.score - second.score
        if difference == 0 and self._config.ties == "drop":
            return "ties"
        probability = self._probability(difference)
        if rng.random() >= probability:
            first, second, probability = second, first, 1 - probability
        soft = self._config.label == "bradley_terry"
        return ScoredPair(
            prompt=rollout.prompt,
            prompt_ids=rollout.prompt_ids,
            chosen=first.completion,
            rejected=second.completion,
            margin=first.score - second.score,
            probability=probability if soft else 1.0,
            step=step,
        )

    def _probability(self, difference: float) -> float:
        """That the first of two wins."""
        if self._config.label == "bradley_terry":
            return 1 / (1 + math.exp(-difference / self._config.temperature))
        return 0.5 if difference == 0 else float(difference > 0)

    def _candidates(self, rollout: Rollout, row: Sequence[Score]) -> list[tuple[_Candidate, _Candidate] | None]:
        """The completions of each pair to make, in an order that says nothing; None where scores are missing."""
        scored = [
            _Candidate(c, s)
            for c, s in zip(rollout.completions, row, strict=True)
            if not isinstance(s, ScoreFailure) and math.isfinite(s)
        ]
        references = [c for c in scored if c.completion.origin is Origin.REFERENCE]
        ours = [c for c in scored if c.completion.origin is not Origin.REFERENCE]
        match self._config.pairing:
            case "reference":
                return [_against_reference(ours, references)]
            case "best_worst":
                return [_best_and_worst(scored)]
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
    # The policy's samples come first, and the first of equals is taken: its own mistakes teach it most.
    return best, min((c for c in scored if c is not best), key=lambda c: c.score)


def _reward_metrics(experience: Sequence[Rollout], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Means over the policy's own completions; the reference's are reported beside them, never mixed in."""
    ours: list[float] = []
    theirs: list[float] = []
    spreads: list[float] = []
    for rollout, row in zip(experience, scores, strict=True):
        numbers = [(c.origin, s) for c, s in zip(rollout.completions, row, strict=True) if isinstance(s, float)]
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


def _label_metrics(ends: Mapping[str, int], pairs: Sequence[ScoredPair]) -> dict[str, float]:
    metrics: dict[str, float] = {f"label/{end}": count for end, count in ends.items()}
    if pairs:
        metrics["label/margin"] = sum(p.margin for p in pairs) / len(pairs)
    return metrics
