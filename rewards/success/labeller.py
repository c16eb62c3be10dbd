"""From episodes to what their steps are worth: -1 a step, 0 at success, and nothing beyond it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rewards.success.confusion import Confusion, confusion, total
from rewards.success.errors import SuccessError
from rewards.success.frames import shows_success
from rewards.success.ranks import auroc
from rewards.success.returns import monte_carlo_returns
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import Episode, Source

Flags = NDArray[np.bool_]


class TrajectoryJudge(Protocol):
    """Tells how likely an episode is the work of the policy that made the references."""

    def probabilities(self, episodes: Sequence[Episode]) -> NDArray[np.float32]:
        """[N], 0 to 1."""
        ...


@dataclass(frozen=True, slots=True)
class SuccessLabelConfig:
    """How steps are paid.

    ``source`` says where the policy's successes come from: ``detected``, the detector that ended the episode;
    ``truth``, the simulator's ``success``; ``environment``, its rewards as they are, with success where it ended.
    With ``detected`` the simulator's truth is used for nothing but the reports, and demonstrations (and prior episodes
    that ended) are paid as in RoboFuME: their last ``num_positive_frames`` steps are successes. With the other two they
    are paid as all episodes are.

    ``step_reward`` is paid for a step, and by a failure for ever; ``success_reward`` for a step that succeeds.
    ``bonus_weight`` times the ranker's
    probability is added where a policy's episode succeeds; one that the ranker gives less than ``least_probability`` is
    left out. ``window`` is how many of the policy's last episodes the reported rates are over.
    """

    source: Literal["detected", "truth", "environment"] = "detected"
    gamma: float = 0.98
    num_positive_frames: int = 3
    step_reward: float = -1.0
    success_reward: float = 0.0
    bonus_weight: float = 0.0
    least_probability: float = 0.0
    window: int = 100

    def __post_init__(self) -> None:
        if self.source not in ("detected", "truth", "environment"):
            raise ValueError(f"source '{self.source}' is unknown; use detected, truth or environment")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma must be at least 0 and below 1, got {self.gamma}")
        if self.num_positive_frames < 1 or self.window < 1:
            raise ValueError("num_positive_frames and window must be at least 1")
        if not self.step_reward < self.success_reward:
            raise ValueError(f"step_reward {self.step_reward} must lie below success_reward {self.success_reward}")
        if not 0 <= self.least_probability <= 1:
            raise ValueError(f"least_probability must be within 0 and 1, got {self.least_probability}")


class SuccessLabeller:
    """Implements :class:`align.protocols.Labeller` for episodes. An episode without a step has nothing to label.

    ``judge`` ranks whole trajectories; it is needed where the settings ask for a bonus or leave episodes out.
    """

    def __init__(self, config: SuccessLabelConfig, judge: TrajectoryJudge | None = None) -> None:
        if judge is None and (config.bonus_weight or config.least_probability):
            raise SuccessError("bonus_weight and least_probability need a trajectory judge; give one or set both to 0")
        self._config = config
        self._judge = judge
        self._recent: deque[Confusion] = deque(maxlen=config.window)
        self._ranks: deque[tuple[float, bool]] = deque(maxlen=config.window)

    def label(self, experience: Sequence[Episode], step: int) -> tuple[list[LabelledEpisode], dict[str, float]]:
        """Raises :class:`SuccessError` where an episode lacks what its labels are to come from."""
        episodes = [episode for episode in experience if len(episode)]
        ranked = self._ranked(episodes)
        labelled: list[LabelledEpisode] = []
        left_out = 0
        for episode in episodes:
            probability = ranked.get(episode.id)
            if probability is not None:
                self._ranks.append((probability, episode.succeeded))
            success = self._successes(episode)
            if episode.source is Source.POLICY:
                self._recent.append(confusion(success, episode.success))
            if probability is not None and probability < self._config.least_probability:
                left_out += 1
                continue
            labelled.append(self._labelled(episode, success, probability))
        return labelled, self._metrics(experience, labelled, left_out, ranked)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [[c.true_positives, c.false_positives, c.true_negatives, c.false_negatives]
                           for c in self._recent],
                "ranks": [list(row) for row in self._ranks]}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ranks = deque(((float(p), bool(truth)) for p, truth in state["ranks"]), maxlen=self._config.window)
        self._recent = deque((Confusion(*map(int, row)) for row in state["recent"]), maxlen=self._config.window)

    def _ranked(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The judge's word on each of the policy's episodes."""
        ours = [episode for episode in episodes if episode.source is Source.POLICY]
        if self._judge is None or not ours:
            return {}
        return {e.id: float(p) for e, p in zip(ours, self._judge.probabilities(ours), strict=True)}

    def _successes(self, episode: Episode) -> Flags:
        """[T]: after which steps the task counts as done; the simulator's word only where the settings say so."""
        if self._config.source != "detected":
            return self._true_successes(episode)
        flags = np.zeros(len(episode), np.bool_)
        if shows_success(episode):
            flags[-self._config.num_positive_frames :] = True
        elif episode.source is Source.POLICY and episode.terminated:
            if not np.isfinite(episode.detected[-1]):
                raise SuccessError(f"episode '{episode.id}' ended without a detection; collect with a detector, or "
                                   "label with source: truth")  # fmt: skip
            flags[-1] = True
        return flags

    def _true_successes(self, episode: Episode) -> Flags:
        if self._config.source == "environment":
            flags = np.zeros(len(episode), np.bool_)
            flags[-1] = episode.terminated
            return flags
        if episode.source is Source.DEMONSTRATION and not episode.success.any():
            raise SuccessError(f"demonstration '{episode.id}' never succeeds by the simulator's word; "
                               "label with source: detected, or leave it out")  # fmt: skip
        return episode.success.astype(np.bool_)

    def _labelled(self, episode: Episode, success: Flags, probability: float | None) -> LabelledEpisode:
        config = self._config
        if config.source == "environment":
            rewards = episode.rewards.astype(np.float32)
        else:
            rewards = np.where(success, config.success_reward, config.step_reward).astype(np.float32)
        if probability is not None:
            rewards[success] += np.float32(config.bonus_weight * probability)
        returns = monte_carlo_returns(rewards, success, gamma=config.gamma, failure_reward=config.step_reward)
        return LabelledEpisode(episode, rewards, success, returns)

    def _metrics(
        self,
        experience: Sequence[Episode],
        labelled: Sequence[LabelledEpisode],
        left_out: int,
        ranked: dict[str, float],
    ) -> dict[str, float]:
        """Shares over the policy's own episodes; a rate that nothing speaks for is left out, not called 0."""
        ours = [item for item in labelled if item.episode.source is Source.POLICY]
        metrics = {
            "label/episodes": float(len(labelled)),
            "label/empty": float(sum(not len(episode) for episode in experience)),
            "label/left_out": float(left_out),
        }
        if ours:
            metrics["reward/detected_success"] = float(np.mean([item.terminals.any() for item in ours]))
            metrics["reward/mean"] = float(np.concatenate([item.rewards for item in ours]).mean())
        if ranked:
            metrics["reward/ranker"] = float(np.mean(list(ranked.values())))
        counts = total(self._recent)
        rates = {
            "reward/false_positive_rate": counts.false_positive_rate,
            "reward/false_negative_rate": counts.false_negative_rate,
            "reward/precision": counts.precision,
            "reward/ranker_auroc": auroc([p for p, _ in self._ranks], [truth for _, truth in self._ranks]),
        }
        return metrics | {name: rate for name, rate in rates.items() if rate is not None}
