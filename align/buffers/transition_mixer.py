"""Offline, then online: batches of transitions from prior data and from the robot's own experience."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final, overload

import numpy as np
import torch
from numpy.typing import NDArray

from align.buffers.transitions import (
    ACTION,
    IMITATE,
    RETURN,
    REWARD,
    TASK,
    VERSION,
    Arrays,
    BufferFault,
    TransitionBuffer,
)
from align.types import TransitionBatch
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import Source


@dataclass(frozen=True, slots=True)
class TransitionMixConfig:
    """What a step learns from.

    The first ``offline_steps`` loop steps make ``offline_updates_per_step`` batches each, of prior data alone. Later
    steps make ``utd`` batches (the update-to-data ratio) for every new decision of the robot, once it has made
    ``start_training`` of them; fractions add up. Of each batch of ``batch_size`` the share ``offline_ratio`` is prior
    data, rounded down: 0.5 is RLPD's symmetric sampling (arXiv 2302.02948) and Cal-QL's setting, ``"proportional"``
    goes by the sizes of the two buffers.

    ``gamma`` and ``n_step`` make rewards and discounts. ``capacity`` bounds the frames of online experience.
    ``imitate`` names the sources whose transitions a BC term may imitate, and ``imitate_successes`` adds the robot's
    own episodes that were judged a success.

    Raises :class:`BufferFault` for values that cannot be.
    """

    offline_steps: int
    offline_updates_per_step: int = 1
    batch_size: int = 128
    utd: float = 1.0
    offline_ratio: float | Literal["proportional"] = 0.5
    gamma: float = 0.99
    n_step: int = 1
    start_training: int = 0
    capacity: int = 200_000
    imitate: frozenset[Source] = field(default_factory=lambda: frozenset({Source.DEMONSTRATION, Source.PRIOR}))
    imitate_successes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.offline_ratio != "proportional" and not 0 <= self.offline_ratio <= 1:
            raise BufferFault(f"offline_ratio is a share from 0 to 1 or 'proportional', got {self.offline_ratio}")
        if not 0 <= self.gamma <= 1 or self.n_step < 1 or self.batch_size < 1 or self.utd < 0:
            raise BufferFault(
                f"gamma must be in [0, 1], n_step and batch_size at least 1 and utd at least 0, got {self.gamma}, "
                f"{self.n_step}, {self.batch_size} and {self.utd}"
            )


@final
class TransitionMixer:
    """Implements :class:`align.protocols.Mixer`: labelled episodes in, batches of transitions out.

    ``offline`` are the labelled episodes of prior data; whatever is added later is online. ``instructions`` maps the
    words of each task to their embedding [I]; with None the batches carry embeddings of size 0, and ``tasks`` must name
    the instructions that can occur.

    The batches of a step are drawn when the step begins and gathered one by one as they are asked for, since a step's
    images together would not fit in memory; add nothing before the last is used. A step's draws depend on the seed and
    the step alone. Checkpoints hold the online frames and never the prior data.
    """

    def __init__(
        self,
        offline: Sequence[LabelledEpisode],
        instructions: Mapping[str, NDArray[Any]] | None,
        config: TransitionMixConfig,
        *,
        tasks: Sequence[str] = (),
    ) -> None:
        self.config = config
        names = sorted(instructions) if instructions is not None else list(dict.fromkeys(tasks))
        rows = [np.asarray(instructions[name], dtype=np.float32) for name in names] if instructions else []
        self._embeddings = torch.from_numpy(np.stack(rows)) if rows else torch.empty(len(names), 0)
        self.offline = TransitionBuffer(max(2, sum(len(each) + 1 for each in offline)), names)
        self.online = TransitionBuffer(config.capacity, names)
        for each in offline:
            self.offline.add(each, imitate=self._imitated(each))
        self._fresh = 0
        self._owed = 0.0
        if config.offline_steps > 0 and config.offline_updates_per_step > 0 and not len(self.offline):
            raise BufferFault("offline steps need prior data: give some, or set offline_steps to 0")

    def add(self, labelled: Sequence[LabelledEpisode]) -> None:
        for each in labelled:
            self._fresh += self.online.add(each, imitate=self._imitated(each))

    def batches(self, step: int) -> Sequence[TransitionBatch]:
        """The batches of this step, gathered on demand; none where there is nothing new to learn from."""
        config = self.config
        if step <= config.offline_steps:
            return self._drawn(step, config.offline_updates_per_step, config.batch_size)
        if len(self.online) < config.start_training or not len(self.online):
            self._fresh = 0
            return self._drawn(step, 0, 0)
        self._owed += config.utd * self._fresh
        self._fresh = 0
        due = math.floor(self._owed)
        self._owed -= due
        return self._drawn(step, due, self._offline_rows())

    def state_dict(self) -> dict[str, Any]:
        return {
            "online": self.online.state_dict(),
            "offline": len(self.offline),
            "fresh": self._fresh,
            "owed": self._owed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["offline"] != len(self.offline):
            raise BufferFault(
                f"the run began with {state['offline']} transitions of prior data, there are {len(self.offline)} now: "
                "continue with the same"
            )
        self.online.load_state_dict(state["online"])
        self._fresh, self._owed = state["fresh"], state["owed"]

    def _imitated(self, labelled: LabelledEpisode) -> bool:
        if labelled.episode.source in self.config.imitate:
            return True
        ours = labelled.episode.source is Source.POLICY
        return self.config.imitate_successes and ours and bool(len(labelled)) and bool(labelled.terminals[-1])

    def _offline_rows(self) -> int:
        """How many rows of an online step's batch are prior data."""
        size, ratio = self.config.batch_size, self.config.offline_ratio
        if not len(self.offline):
            return 0
        if ratio == "proportional":
            ratio = len(self.offline) / (len(self.offline) + len(self.online))
        return math.floor(size * ratio)

    def _drawn(self, step: int, count: int, offline_rows: int) -> "_Batches":
        generator = np.random.default_rng((self.config.seed, step))
        online_rows = self.config.batch_size - offline_rows
        empty = np.empty((count, 0), dtype=np.int64)
        offline = self.offline.draw(generator, (count, offline_rows)) if count and offline_rows else empty
        online = self.online.draw(generator, (count, online_rows)) if count and online_rows else empty
        return _Batches(self, step, offline, online)

    def _gather(self, step: int, offline: NDArray[np.int64], online: NDArray[np.int64]) -> TransitionBatch:
        config = self.config
        parts = [
            buffer.gather(starts, gamma=config.gamma, n_step=config.n_step)
            for buffer, starts in ((self.offline, offline), (self.online, online))
            if len(starts)
        ]
        joined: Arrays = {
            name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
            for name in parts[0]
        }
        tensors = {name: torch.from_numpy(values) for name, values in joined.items()}
        is_offline = torch.zeros(len(offline) + len(online), dtype=torch.bool)
        is_offline[: len(offline)] = True
        return TransitionBatch(
            observations=_under("observation/", tensors),
            next_observations=_under("next_observation/", tensors),
            instructions=self._embeddings[tensors[TASK].long()],
            actions=tensors[ACTION],
            rewards=tensors[REWARD],
            discounts=tensors["discount"],
            mc_returns=tensors[RETURN],
            is_offline=is_offline,
            imitate=tensors[IMITATE],
            policy_versions=tensors[VERSION],
            step=step,
        )


@final
class _Batches(Sequence[TransitionBatch]):
    """The batches of one step: frames are drawn, observations not yet copied."""

    def __init__(
        self, mixer: TransitionMixer, step: int, offline: NDArray[np.int64], online: NDArray[np.int64]
    ) -> None:
        self._mixer = mixer
        self._step = step
        self._offline = offline
        self._online = online

    def __len__(self) -> int:
        return len(self._offline)

    @overload
    def __getitem__(self, index: int) -> TransitionBatch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TransitionBatch]: ...

    def __getitem__(self, index: int | slice) -> TransitionBatch | Sequence[TransitionBatch]:
        if isinstance(index, slice):
            return _Batches(self._mixer, self._step, self._offline[index], self._online[index])
        return self._mixer._gather(self._step, self._offline[index], self._online[index])


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
