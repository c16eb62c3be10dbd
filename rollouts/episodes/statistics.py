"""What a store holds, in numbers: for normalisation, and for a reader."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import STATE, Episode
from rollouts.episodes.codec import Layout
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.images import is_image
from rollouts.episodes.store import SHARDS, read_episodes, read_info

ACTION = "action"

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of ``count`` vectors: mean, standard deviation (of the population), least and greatest value, each [D]."""

    count: int
    mean: Vector
    std: Vector
    min: Vector
    max: Vector

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Moments":
        """Of the rows of [N, D], N at least 1."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        return cls(len(rows), rows.mean(0), rows.std(0), rows.min(0), rows.max(0))

    def joined(self, other: "Moments") -> "Moments":
        """Of both sets of vectors together (Chan et al., "Updating formulae and a pairwise algorithm", 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        within = self.count * self.std**2 + other.count * other.std**2
        variance = (within + delta**2 * self.count * other.count / count) / count
        return Moments(count, mean, np.sqrt(variance), np.minimum(self.min, other.min), np.maximum(self.max, other.max))

    def scale(self, floor: float = 1e-3) -> NDArray[np.float32]:
        """[D] to divide by: the standard deviation, and 1 where it is below ``floor``.

        A dimension that hardly moves carries no news; divided by its own deviation it would be nothing but noise, or a
        division by zero.
        """
        return np.where(self.std < floor, 1.0, self.std).astype(np.float32)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "std", "min", "max")}
        return {"count": self.count, **arrays}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Moments":
        arrays = {name: np.asarray(plain[name], np.float64) for name in ("mean", "std", "min", "max")}
        return cls(plain["count"], **arrays)


def moments(episodes: Iterable[Episode]) -> dict[str, Moments]:
    """Moments over all steps of each observation that is no picture (all T+1 of an episode), and of "action".

    Pictures have a scale of their own. Raises :class:`EpisodeError` where there is no action, or a number is not
    finite.
    """
    sums: dict[str, Moments] = {}
    for episode in episodes:
        arrays = {k: v for k, v in episode.observations.items() if not is_image(v.shape[1:], v.dtype)}
        for key, values in {**arrays, ACTION: episode.actions}.items():
            if not np.isfinite(values).all():
                raise EpisodeError(f"episode {episode.id!r}: {key} holds numbers that are not finite")
            if len(values):
                part = Moments.of(values)
                sums[key] = sums[key].joined(part) if key in sums else part
    if ACTION not in sums:
        raise EpisodeError("no actions to compute statistics of: the episodes are empty, or there are none")
    return sums


def state_moments(path: Path | str) -> Moments:
    """Moments of "state" over a whole store, pictures unread. Raises :class:`EpisodeError`."""
    return moments(read_episodes(path, keys=[STATE]))[STATE]


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task and source.

    ``succeeded`` counts those that end with the task done, in truth; ``positives`` the steps after which it is.
    ``returns`` is the mean of the summed rewards, ``discounted`` that of the Monte-Carlo return of the first step under
    RoboFuME's reward, -1 a step and 0 in a step that ends with the task done: ``-(1 - gamma^k) / (1 - gamma)``, k the
    steps before the first success, and ``-1 / (1 - gamma)`` for an episode without one, as if it failed for ever.
    ``rejected`` attempts were made beside the episodes and not kept, where their metadata say so.
    """

    task: str
    instruction: str
    source: str
    lengths: tuple[int, ...]
    succeeded: int
    positives: int
    terminated: int
    truncated: int
    returns: float
    discounted: float
    rejected: int

    @property
    def success(self) -> float:
        return self.succeeded / len(self.lengths)


@dataclass(frozen=True, slots=True)
class DataCard:
    """What a store, or another folder of episodes, holds: :func:`describe`, :func:`card`.

    ``files`` are counted by their name, as "2 shards"; ``image_format`` is how pictures are kept, where that is known.
    """

    layout: Layout
    groups: tuple[Group, ...]
    gamma: float
    files: str
    bytes: int
    image_format: str | None = None

    def markdown(self) -> str:
        """A small card for people: what is there, by task and source."""
        episodes = sum(len(group.lengths) for group in self.groups)
        steps = sum(sum(group.lengths) for group in self.groups)
        observations = ", ".join(
            f"`{key}` {spec.dtype}[{'x'.join(map(str, spec.shape))}]"
            + (f" ({self.image_format.upper()})" if spec.is_image and self.image_format else "")
            for key, spec in self.layout.observations.items()
        )
        lines = [
            f"{episodes} episodes, {steps} steps, {self.files}, {self.bytes / 1e6:.1f} MB",
            "",
            f"Observations {observations}; actions [{self.layout.action}].",
            "",
            f"| task | instruction | source | episodes | steps | length | success | positive steps | terminated "
            f"| truncated | return | discounted ({self.gamma:g}) | rejected |",
            "|---" * 13 + "|",
            *map(_row, self.groups),
        ]
        return "\n".join(lines) + "\n"


def describe(path: Path | str, gamma: float = 0.97) -> DataCard:
    """Success, lengths and returns of a store by task and source, in order of first appearance; pictures unread.

    Raises :class:`EpisodeError`, for a ``gamma`` outside [0, 1) too.
    """
    info = read_info(path)
    groups = _groups(read_episodes(path, keys=[]), gamma)
    size = sum((Path(path) / SHARDS / shard.file).stat().st_size for shard in info.shards)
    return DataCard(info.layout, groups, gamma, f"{len(info.shards)} shards", size, info.image_format)


def card(folder: Path | str, episodes: Iterable[Episode], gamma: float = 0.97) -> DataCard:
    """What :func:`describe` tells, of ``episodes`` that were read from a ``folder`` in another format.

    The layout is the first one's. Raises :class:`EpisodeError`, where there are no episodes too.
    """
    rest = iter(episodes)
    first = next(rest, None)
    if first is None:
        raise EpisodeError(f"{folder}: no episodes in it")
    sizes = [file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()]
    return DataCard(Layout.of(first), _groups(chain([first], rest), gamma), gamma, f"{len(sizes)} files", sum(sizes))


def _groups(episodes: Iterable[Episode], gamma: float) -> tuple[Group, ...]:
    if not 0 <= gamma < 1:
        raise EpisodeError(f"gamma must be at least 0 and below 1, got {gamma}")
    tallies: dict[tuple[str, str, str], _Tally] = {}
    for episode in episodes:
        key = episode.task.name, episode.task.instruction, str(episode.source)
        tallies.setdefault(key, _Tally()).add(episode, gamma)
    return tuple(tally.group(*key) for key, tally in tallies.items())


@dataclass(slots=True)
class _Tally:
    lengths: list[int] = field(default_factory=list)
    succeeded: int = 0
    positives: int = 0
    terminated: int = 0
    truncated: int = 0
    returns: float = 0.0
    discounted: float = 0.0
    rejected: int = 0

    def add(self, episode: Episode, gamma: float) -> None:
        self.lengths.append(len(episode))
        self.succeeded += episode.succeeded
        self.positives += int(episode.success.sum())
        self.terminated += episode.terminated
        self.truncated += episode.truncated
        self.returns += float(episode.rewards.sum(dtype=np.float64))
        steps = float(np.argmax(episode.success)) if episode.success.any() else math.inf
        self.discounted += -(1 - gamma**steps) / (1 - gamma)
        self.rejected += int(episode.metadata.get("rejected", 0))

    def group(self, task: str, instruction: str, source: str) -> Group:
        count = len(self.lengths)
        return Group(
            task,
            instruction,
            source,
            tuple(self.lengths),
            self.succeeded,
            self.positives,
            self.terminated,
            self.truncated,
            self.returns / count,
            self.discounted / count,
            self.rejected,
        )


def _row(group: Group) -> str:
    lengths = sorted(group.lengths)
    cells = [
        group.task,
        group.instruction,
        group.source,
        len(lengths),
        sum(lengths),
        f"{lengths[0]} to {lengths[-1]}, median {float(np.median(lengths)):g}",
        f"{group.success:.2f}",
        f"{group.positives / max(1, sum(lengths)):.3f}",
        group.terminated,
        group.truncated,
        f"{group.returns:.1f}",
        f"{group.discounted:.1f}",
        group.rejected,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
