"""Offline, then online: one mixer for a run that begins with a data set and goes on with its own experience."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.buffers.offline import OfflinePairs
from align.protocols import Mixer
from align.types import PairBatch
from rewards.types import ScoredPair


@dataclass(frozen=True, slots=True)
class MixConfig:
    """What a step learns from.

    The first ``offline_steps`` steps make ``offline_updates_per_step`` batches each, of ``batch_pairs`` offline pairs.
    Later steps get the online batches, and ``offline_ratio`` offline pairs for every online pair in them: 1 makes half
    of what is learned offline (RLPD's symmetric sampling, arXiv 2302.02948), 0 none.
    """

    batch_pairs: int
    offline_steps: int
    offline_updates_per_step: int = 1
    offline_ratio: float = 0.0


class OfflineOnlineMixer:
    """Implements :class:`align.protocols.Mixer`: offline pairs by their cursor, online pairs by a mixer of their own.

    A run without a collector is one whose ``offline_steps`` are all its steps: then nothing is ever added. Checkpoints
    hold the online pairs and the cursor, never the offline pairs.
    """

    def __init__(self, online: Mixer[ScoredPair, PairBatch], offline: OfflinePairs, config: MixConfig) -> None:
        self._online = online
        self._offline = offline
        self._config = config
        self._online_pairs = 0
        self._offline_pairs = 0

    def add(self, labelled: Sequence[ScoredPair]) -> None:
        self._online.add(labelled)

    def batches(self, step: int) -> list[PairBatch]:
        """The batches of this step; in an online step none where there are no online pairs to learn from."""
        config = self._config
        if step <= config.offline_steps:
            updates = range(config.offline_updates_per_step)
            return [self._with_offline(PairBatch((), (), 0, step), config.batch_pairs) for _ in updates]
        online = self._online.batches(step)
        due = self._due(sum(len(batch.pairs) for batch in online))
        # Dealt out like cards, so that the batches of a step hold the same share.
        return [self._with_offline(batch, len(range(index, due, len(online)))) for index, batch in enumerate(online)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "online": self._online.state_dict(),
            "offline": self._offline.state_dict(),
            "online_pairs": self._online_pairs,
            "offline_pairs": self._offline_pairs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._online.load_state_dict(state["online"])
        self._offline.load_state_dict(state["offline"])
        self._online_pairs, self._offline_pairs = state["online_pairs"], state["offline_pairs"]

    def _due(self, online: int) -> int:
        """Offline pairs owed for ``online`` more online pairs.

        The ratio holds over the whole run, to less than one pair, so that a small one is not rounded away at each step.
        """
        self._online_pairs += online
        due = math.floor(self._config.offline_ratio * self._online_pairs) - self._offline_pairs
        self._offline_pairs += due
        return due

    def _with_offline(self, batch: PairBatch, count: int) -> PairBatch:
        pairs, fresh = self._offline.take(count)
        return PairBatch(
            pairs=(*batch.pairs, *pairs),
            is_offline=(*batch.is_offline, *(True for _ in pairs)),
            fresh=batch.fresh + fresh,
            step=batch.step,
        )
