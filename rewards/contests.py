"""From contests to preference pairs: who wins, what the loss is told, and what became of every pair that could be."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.types import ScoredPair
from rollouts.types import Completion, Rollout

Label = Literal["argmax", "bradley_terry", "soft"]
"""How a contest becomes a pair. ``p`` is the labeller's probability that the first of the two is the better one.

``argmax``: the more probable side is chosen, as a hard label.
``bradley_terry``: the first is chosen with probability ``p``, and what was drawn is a hard label: the oracle of XPO's
Algorithm 1 (arXiv 2405.21046).
``soft``: the more probable side is chosen, and its probability enters the loss (``ScoredPair.target``). That is cDPO
with the model's own probability in the place of one smoothing for all pairs.
"""

Ties = Literal["drop", "random"]
"""``drop`` leaves out what neither side wins, ``random`` lets a fair coin decide."""

Missed = Literal["identical", "failed"]
"""Why there is no contest: the two are the same tokens, or there are no two that could be judged.

Tokens decide, because they are what a loss sees: the same text in other tokens is a contest (and mostly a tie).
"""


@dataclass(frozen=True, slots=True)
class Contest:
    """Two completions of one prompt, judged; which of the two stands first says nothing.

    ``margin`` says by how much the first is better (units of the reward, or nats), ``probability`` how likely it is
    that it is better. Where the labeller sees no difference ``tied`` is set and ``probability`` does not count.
    """

    rollout: Rollout
    first: Completion
    second: Completion
    margin: float
    probability: float
    tied: bool


class PairLedger:
    """Decides contests, and counts their ends: the state of a labeller.

    Every contest that could be ends in exactly one of four columns, which add up: ``label/pairs``, ``label/ties``
    (dropped), ``label/identical`` and ``label/failed``. ``label/tie_rate`` is the share of ties among the contests that
    took place, whatever became of them.
    """

    def __init__(self, label: Label, ties: Ties) -> None:
        self._label: Label = label
        self._ties = ties
        self._ends: dict[str, int] = {"pairs": 0, "ties": 0, "identical": 0, "failed": 0}

    def settle(
        self, contests: Sequence[Contest | Missed], step: int, rng: random.Random
    ) -> tuple[list[ScoredPair], dict[str, float]]:
        """The pairs of a step, and its ``label/*`` metrics; ``rng`` holds the coins."""
        held = [c for c in contests if isinstance(c, Contest)]
        kept = [c for c in held if not (c.tied and self._ties == "drop")]
        pairs = [decide(contest, self._label, step, rng) for contest in kept]
        ends = dict.fromkeys(self._ends, 0) | {"pairs": len(pairs), "ties": len(held) - len(kept)}
        for missed in contests:
            if isinstance(missed, str):
                ends[missed] += 1
        for end, count in ends.items():
            self._ends[end] += count
        metrics: dict[str, float] = {f"label/{end}": count for end, count in ends.items()}
        if held:
            metrics["label/tie_rate"] = sum(c.tied for c in held) / len(held)
        if pairs:
            metrics["label/margin"] = _mean(p.margin for p in pairs)
            if self._label != "argmax":
                metrics["label/probability"] = _mean(p.probability for p in pairs)
        return pairs, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"ledger": dict(self._ends)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ends = dict(state["ledger"])


def decide(contest: Contest, label: Label, step: int, rng: random.Random) -> ScoredPair:
    """The pair of a contest; a tie is decided by a fair coin, whatever the label."""
    probability = 0.5 if contest.tied else contest.probability
    # The sign of the margin, since a small one may round to a probability of one half.
    chance = probability if contest.tied or label == "bradley_terry" else float(contest.margin > 0)
    chosen, rejected, margin = contest.first, contest.second, contest.margin
    if rng.random() >= chance:
        chosen, rejected, margin, probability = rejected, chosen, -margin, 1 - probability
    if label == "argmax" and not contest.tied:
        probability = 1.0
    return ScoredPair(
        prompt=contest.rollout.prompt,
        prompt_ids=contest.rollout.prompt_ids,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        probability=probability,
        step=step,
        target=probability if label == "soft" else 1.0,
    )


def sigmoid(x: float) -> float:
    """``1 / (1 + exp(-x))`` for any ``x``."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1 + small)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
