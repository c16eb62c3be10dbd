"""From a judge's comparisons to preference pairs."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.checks import checked_preference
from rewards.contests import Contest, Label, Missed, PairLedger, Ties
from rewards.judges import BothOrders, JudgeItem, PairJudge, Preference
from rewards.types import ScoredPair, ScoreFailure
from rollouts.types import Completion, Origin, Rollout

MARGIN_LIMIT = 20.0
"""Log-odds in nats at which margins are clipped: a judge that says 0 or 1 would make them infinite."""


@dataclass(frozen=True, slots=True)
class JudgeLabelConfig:
    """How pairs are made of comparisons.

    ``label``: what becomes of the judge's probability (:data:`rewards.contests.Label`).
    ``pairing``: ``reference`` has the first policy sample judged against the reference sample, as in Algorithm 1 of
    XPO; ``each_reference`` every policy sample against it; ``random`` two of all samples, drawn at random.
    ``ties``: ``drop`` or ``random``. A probability within ``tie_tolerance`` of 1/2 is a tie.
    ``both_orders``: asks each pair in both orders, for twice the cost (:class:`rewards.judges.BothOrders`). Without it
    a coin decides who stands first, so that a judge's liking for a place is noise, and favours no policy.

    Raises ``ValueError`` when ``tie_tolerance`` is not in [0, 0.5).
    """

    label: Label = "argmax"
    pairing: Literal["reference", "each_reference", "random"] = "reference"
    ties: Ties = "drop"
    tie_tolerance: float = 0.0
    both_orders: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tie_tolerance < 0.5:
            raise ValueError(f"tie_tolerance must be at least 0 and below 0.5, got {self.tie_tolerance}")


class JudgedLabeller:
    """Has pairs of completions judged; implements :class:`align.protocols.Labeller`.

    A pair's ``margin`` is the judge's log-odds, in nats, clipped to +-20. The accounts are those of
    :class:`rewards.contests.PairLedger`; what the judge fails on ends in ``label/failed``. Completions of equal text in
    different tokens are a tie, and the judge, who sees the text alone, is not asked.
    """

    def __init__(self, judge: PairJudge, config: JudgeLabelConfig) -> None:
        self._judge = BothOrders(judge) if config.both_orders else judge
        self._config = config
        self._ledger = PairLedger(config.label, config.ties)

    def label(self, experience: Sequence[Rollout], step: int) -> tuple[list[ScoredPair], dict[str, float]]:
        rng = random.Random(f"judge:{self._config.seed}:{step}")
        drawn = [(rollout, item) for rollout in experience for item in self._items(rollout, rng)]
        asked = [item for _, item in drawn if isinstance(item, JudgeItem) and item.first.text != item.second.text]
        answers = self._judge.judge(asked) if asked else []
        if len(answers) != len(asked):
            raise ValueError(f"the judge gave {len(answers)} answers for {len(asked)} pairs")
        left = iter(answers)
        contests: list[Contest | Missed] = []
        for rollout, item in drawn:
            if isinstance(item, JudgeItem):
                answer = next(left) if item.first.text != item.second.text else 0.5
                contests.append(self._contest(rollout, item, answer))
            else:
                contests.append(item)
        return self._ledger.settle(contests, step, rng)

    def state_dict(self) -> dict[str, Any]:
        return self._ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ledger.load_state_dict(state)

    def _items(self, rollout: Rollout, rng: random.Random) -> list[JudgeItem | Missed]:
        """The pairs of a rollout to judge, each in an order that a coin decides."""
        items: list[JudgeItem | Missed] = []
        for pair in self._pairs(rollout, rng):
            first, second = rng.sample(pair, 2)
            same = first.token_ids == second.token_ids
            items.append("identical" if same else JudgeItem(rollout.prompt, first, second))
        return items or ["failed"]

    def _pairs(self, rollout: Rollout, rng: random.Random) -> list[tuple[Completion, Completion]]:
        if self._config.pairing == "random":
            if len(rollout.completions) < 2:
                return []
            first, second = rng.sample(rollout.completions, 2)
            return [(first, second)]
        references = [c for c in rollout.completions if c.origin is Origin.REFERENCE]
        ours = [c for c in rollout.completions if c.origin is not Origin.REFERENCE]
        if self._config.pairing == "reference":
            ours = ours[:1]
        return [(sample, references[0]) for sample in ours] if references else []

    def _contest(self, rollout: Rollout, item: JudgeItem, answer: Preference | ScoreFailure) -> Contest | Missed:
        # Judges come from outside: what their type promises is checked again where it would become a label.
        answer = answer if isinstance(answer, ScoreFailure) else checked_preference(answer, "the judge")
        if isinstance(answer, ScoreFailure):
            return "failed"
        return Contest(
            rollout=rollout,
            first=item.first,
            second=item.second,
            margin=log_odds(answer),
            probability=answer,
            tied=abs(answer - 0.5) <= self._config.tie_tolerance,
        )


def log_odds(probability: float) -> float:
    """``log(p / (1 - p))`` in nats, clipped to +-20 (:data:`MARGIN_LIMIT`)."""
    if probability in (0.0, 1.0):
        return MARGIN_LIMIT if probability else -MARGIN_LIMIT
    return max(-MARGIN_LIMIT, min(MARGIN_LIMIT, math.log(probability / (1 - probability))))
