"""The cumulative pair buffer D^(t) of XPO's Algorithm 1."""

import random
from collections.abc import Sequence
from typing import Any

from align.types import PairBatch
from rewards.types import ScoredPair
from rollouts.plain import completion_from, plain_completion, plain_prompt, prompt_from
from rollouts.types import Origin, Prompt


class PairMixer:
    """Keeps every pair, and gives each step its new ones once plus replayed old ones; implements ``Mixer``.

    Algorithm 1 minimises over all pairs so far in every round. Here a round is ``epochs`` passes over the new pairs and
    over ``replay_ratio`` times as many drawn without replacement from the older ones, in batches of about
    ``batch_pairs``: the same objective, by stochastic gradients. ``capacity`` keeps only the newest pairs; None keeps
    all.
    """

    def __init__(
        self, *, batch_pairs: int, replay_ratio: float, seed: int, epochs: int = 1, capacity: int | None = None
    ) -> None:
        self._batch_pairs = batch_pairs
        self._epochs = epochs
        self._capacity = capacity
        self._replay_ratio = replay_ratio
        self._seed = seed
        self._pairs: list[ScoredPair] = []
        self._fresh_from = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, labelled: Sequence[ScoredPair]) -> None:
        self._pairs += labelled
        if self._capacity is not None and (excess := len(self._pairs) - self._capacity) > 0:
            del self._pairs[:excess]
            self._fresh_from = max(0, self._fresh_from - excess)

    def batches(self, step: int) -> list[PairBatch]:
        """The batches of this step: none when there is nothing to learn from."""
        rng = random.Random(f"{self._seed}:{step}")
        fresh, old = self._pairs[self._fresh_from :], self._pairs[: self._fresh_from]
        self._fresh_from = len(self._pairs)
        replayed = rng.sample(old, min(len(old), round(self._replay_ratio * max(len(fresh), self._batch_pairs // 2))))
        batches: list[PairBatch] = []
        for epoch in range(self._epochs):
            rng.shuffle(fresh)
            if epoch:
                rng.shuffle(replayed)
            batches += self._deal(fresh, replayed, step, first=epoch == 0)
        return batches

    def _deal(
        self, fresh: Sequence[ScoredPair], replayed: Sequence[ScoredPair], step: int, *, first: bool
    ) -> list[PairBatch]:
        """One pass, dealt out like cards: every batch holds its share of new and of old pairs.

        Their sizes differ by at most two, so that no batch is a noisy handful.
        """
        count = max(1, round((len(fresh) + len(replayed)) / self._batch_pairs))
        return [
            PairBatch(
                pairs=(*new, *replay),
                is_offline=_offline((*new, *replay)),
                fresh=len(new) if first else 0,
                step=step,
            )
            for new, replay in ((fresh[i::count], replayed[i::count]) for i in range(count))
            if new or replay
        ]

    def state_dict(self) -> dict[str, Any]:
        prompts = {p.prompt.id: p.prompt for p in self._pairs}
        return {
            "fresh_from": self._fresh_from,
            "prompts": {id: plain_prompt(p) for id, p in prompts.items()},
            "pairs": [_plain_pair(p) for p in self._pairs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        prompts = {id: prompt_from(plain) for id, plain in state["prompts"].items()}
        self._fresh_from = state["fresh_from"]
        self._pairs = [_pair_from(p, prompts) for p in state["pairs"]]


def _offline(pairs: Sequence[ScoredPair]) -> tuple[bool, ...]:
    return tuple(p.chosen.origin is Origin.DATASET and p.rejected.origin is Origin.DATASET for p in pairs)


def _plain_pair(pair: ScoredPair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt.id,
        "prompt_ids": list(pair.prompt_ids),
        "chosen": plain_completion(pair.chosen),
        "rejected": plain_completion(pair.rejected),
        "margin": pair.margin,
        "probability": pair.probability,
        "step": pair.step,
        "target": pair.target,
    }


def _pair_from(plain: dict[str, Any], prompts: dict[str, Prompt]) -> ScoredPair:
    return ScoredPair(
        prompt=prompts[plain["prompt"]],
        prompt_ids=tuple(plain["prompt_ids"]),
        chosen=completion_from(plain["chosen"]),
        rejected=completion_from(plain["rejected"]),
        margin=plain["margin"],
        probability=plain["probability"],
        step=plain["step"],
        # Checkpoints from before soft labels hold hard ones only.
        target=plain.get("target", 1.0),
    )
