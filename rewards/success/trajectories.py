"""Whole episodes as sequences of features, all of one length, and plain distances between them.

Letters: ``T`` steps, ``L`` points of a resampled trajectory, ``D`` features, ``N`` episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewards.success.errors import SuccessError
from rewards.success.features import Backbone, build_features, grid_maps
from rollouts.envs.types import IMAGE, STATE, Episode

Floats = NDArray[np.float32]
BASELINES = ("trajectory L2", "final L2")


@dataclass(frozen=True, slots=True)
class TrajectoryConfig:
    """What of an episode is looked at: its ``state`` (all dimensions, or ``state_dimensions``), or frozen features of
    its ``image`` averaged to at most ``grid`` by ``grid`` cells; at ``length`` points, evenly spread over its time."""

    source: Literal["state", "image"] = "state"
    state_dimensions: tuple[int, ...] = ()
    backbone: Backbone = "auto"
    blocks: int = 5
    grid: int = 3
    length: int = 32

    def __post_init__(self) -> None:
        if self.source not in ("state", "image"):
            raise ValueError(f"source '{self.source}' is unknown; use state or image")
        if self.length < 2 or self.grid < 1:
            raise ValueError("length must be at least 2 and grid at least 1")


class TrajectoryReader:
    """Episodes to [N, L, D], as they come; :meth:`standardise` learns the scale from the episodes of training."""

    def __init__(self, config: TrajectoryConfig) -> None:
        self.config = config
        self._features = build_features(config.backbone, config.blocks) if config.source == "image" else None
        self._mean: Floats | None = None
        self._scale: Floats | None = None

    def read(self, episodes: Sequence[Episode]) -> Floats:
        """[N, L, D], standardised once :meth:`standardise` was called."""
        rows = np.stack([resample(self._sequence(episode), self.config.length) for episode in episodes])
        if self._mean is not None and self._scale is not None:
            rows = (rows - self._mean) * self._scale
        return rows.astype(np.float32)

    def standardise(self, episodes: Sequence[Episode]) -> Floats:
        """Makes features of ``episodes`` have mean 0 and spread 1 from now on, and reads them."""
        self._mean = self._scale = None
        rows = self.read(episodes)
        self._mean = rows.mean((0, 1))
        spread = rows.std((0, 1))
        self._scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0.0).astype(np.float32)
        return (rows - self._mean) * self._scale

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "scale": self._scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean, self._scale = state["mean"], state["scale"]

    def _sequence(self, episode: Episode) -> Floats:
        key = self.config.source
        if key not in episode.observations:
            raise SuccessError(f"episode '{episode.id}' has no '{key}'; record it or use another source")
        if self._features is not None:
            maps = grid_maps(self._features, episode.observations[IMAGE], self.config.grid)
            return maps.reshape(len(maps), -1)
        states = episode.observations[STATE].astype(np.float32)
        return states[:, list(self.config.state_dimensions)] if self.config.state_dimensions else states


def resample(sequence: Floats, length: int) -> Floats:
    """``length`` points of ``sequence`` [T+1, D], evenly spread over its time and linear in between; ends are kept."""
    places = np.linspace(0, len(sequence) - 1, length)
    before = np.floor(places).astype(np.int64)
    after = np.minimum(before + 1, len(sequence) - 1)
    part = (places - before)[:, None].astype(np.float32)
    made: Floats = sequence[before] * (1 - part) + sequence[after] * part
    return made


def baseline_scores(name: str, reference: Floats, candidates: Floats) -> Floats:
    """Minus a distance of ``candidates`` [N, L, D] from ``reference`` [L, D], [N]: the mean over time of the points'
    L2 distances, or that of the last points alone."""
    distances = np.linalg.norm(candidates - reference[None], axis=2)
    match name:
        case "trajectory L2":
            scores: Floats = -distances.mean(1)
            return scores
        case "final L2":
            final: Floats = -distances[:, -1]
            return final
        case _:
            raise ValueError(f"baseline '{name}' is unknown; use one of {', '.join(BASELINES)}")
