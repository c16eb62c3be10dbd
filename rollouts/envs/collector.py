"""The robot's experience: episodes of the current policy, one after the other, without resets."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote, urlparse

import numpy as np

from rollouts.envs.api import EnvError, SceneEnv, derive_seed
from rollouts.envs.reset_free import EnvControls, ResetFreeConfig, ResetFreeScheduler
from rollouts.envs.rollout import Acting, Attempt, next_attempt
from rollouts.envs.types import Episode, Policy, SuccessDetector, only
from rollouts.types import WeightUpdate


@runtime_checkable
class LoadablePolicy(Protocol):
    """A policy that a learner can give new weights."""

    def load(self, path: Path) -> None:
        """Reads a safetensors file that the learner wrote."""
        ...


@dataclass(frozen=True, slots=True)
class EnvCollectConfig:
    """How much a step collects: ``episodes``, or as many whole episodes as make ``decisions``; one of the two is set.

    ``seed`` is the run's, ``collector`` tells several collectors of a run apart. Of the observations only ``keep`` goes
    into the episodes, None keeps all: pictures that nobody but the detector needs are large. Raises
    :class:`rollouts.envs.api.EnvError` for neither or both, or less than 1.
    """

    seed: int
    episodes: int | None = None
    decisions: int | None = None
    collector: int = 0
    keep: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.episodes, self.decisions) if limit is not None]
        if len(limits) != 1 or limits[0] < 1:
            raise EnvError("a step collects so many episodes, or so many decisions: set one of the two, to at least 1")


class EnvCollector:
    """Implements :class:`align.protocols.Collector` for robots.

    With a ``detector`` its positive ends an episode, and the truth is only written down; without one the truth does.
    An episode is always played to its end before :meth:`collect` returns, so that none is lost or cut in two. What is
    drawn for an episode follows from the run's seed, the collector and the episode's number alone. ``ask`` is told of
    each hard reset: see :class:`rollouts.envs.reset_free.EnvControls`.
    """

    def __init__(
        self,
        env: SceneEnv,
        policy: Policy,
        config: EnvCollectConfig,
        reset_free: ResetFreeConfig | None = None,
        detector: SuccessDetector | None = None,
        ask: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._acting = Acting(env, policy, detector, by_detector=detector is not None)
        names = [task.name for task in env.tasks]
        self._scheduler = ResetFreeScheduler(names, reset_free or ResetFreeConfig(), EnvControls(env, ask))
        self._number = 0

    def collect(self, step: int) -> tuple[list[Episode], dict[str, float]]:
        """The next episodes; their metrics are of this step, but for those over the whole run that end in ``_total``
        and ``collect/interventions_per_100_episodes``."""
        started = time.perf_counter()
        counts = self._scheduler.counts
        before = replace(counts)
        attempts: list[Attempt] = []
        while not self._enough(attempts):
            attempts.append(self._next())
        elapsed = time.perf_counter() - started
        decisions = counts.steps - before.steps
        keep = self._config.keep
        return [a.episode if keep is None else only(a.episode, keep) for a in attempts], {
            **attempt_metrics(attempts, judged=self._acting.by_detector),
            "collect/episodes": len(attempts),
            "collect/decisions": decisions,
            "collect/hard_resets": counts.hard_resets - before.hard_resets,
            "collect/instant": counts.instant - before.instant,
            "collect/interventions": counts.interventions - before.interventions,
            "collect/interventions_total": counts.interventions,
            "collect/episodes_total": counts.episodes,
            "collect/interventions_per_100_episodes": 100.0 * counts.interventions / counts.episodes,
            "perf/decisions_per_s": decisions / elapsed,
        }

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        """Gives the policy the weights in the file that ``update`` names; the next episode is played with them."""
        policy = self._acting.policy
        if not isinstance(policy, LoadablePolicy):
            raise EnvError(f"{type(policy).__name__} has no weights to load: a learner needs a policy with load(path)")
        place = urlparse(update.uri)
        if place.scheme != "file":
            raise EnvError(f"a robot's policy reads its weights from a file, not from {update.uri!r}")
        policy.load(Path(unquote(place.path)))
        self._acting = replace(self._acting, policy_version=update.version)
        return {"sync/version": update.version}

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, which are the learner's: :meth:`load_weights` brings them back."""
        return {
            "number": self._number,
            "version": self._acting.policy_version,
            "scheduler": self._scheduler.state_dict(),
            # A scene is set up by the first attempt; before it there is nothing to keep.
            "env": self._acting.env.state_dict() if self._number else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._number = state["number"]
        self._acting = replace(self._acting, policy_version=state["version"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._number:
            self._acting.env.load_state_dict(state["env"])

    def close(self) -> None:
        """Closes the environment."""
        self._acting.env.close()

    def _enough(self, attempts: Sequence[Attempt]) -> bool:
        if self._config.episodes is not None:
            return len(attempts) >= self._config.episodes
        return sum(len(a.episode) for a in attempts) >= (self._config.decisions or 0)

    def _next(self) -> Attempt:
        config = self._config
        attempt = next_attempt(
            self._acting,
            self._scheduler,
            id=f"online-{config.seed}-{config.collector}-{self._number:06d}",
            seed=derive_seed(config.seed, "collect", config.collector, self._number),
        )
        self._number += 1
        return attempt


def attempt_metrics(attempts: Sequence[Attempt], judged: bool) -> dict[str, float]:
    """Success, length and the detector's mistakes, over all attempts and for each task.

    ``train_success`` is the truth at the end of an episode, ``detected_success`` what the detector said there. The
    rates of mistakes are over decisions: of those after which the task was not done, how many the detector called done
    (``false_positive_rate``), and the reverse; ``precision`` is over its positives. A rate over nothing is left out.
    """
    metrics = _metrics(attempts, judged, "")
    for task in sorted({a.episode.task.name for a in attempts}):
        metrics |= _metrics([a for a in attempts if a.episode.task.name == task], judged, f".{task}")
    return metrics


def _metrics(attempts: Sequence[Attempt], judged: bool, suffix: str) -> dict[str, float]:
    metrics = {
        f"collect/train_success{suffix}": float(np.mean([a.episode.succeeded for a in attempts])),
        f"collect/episode_length{suffix}": float(np.mean([len(a.episode) for a in attempts])),
    }
    if judged:
        truth = np.concatenate([a.episode.success for a in attempts])
        positive = np.concatenate([a.positives for a in attempts])
        metrics[f"collect/detected_success{suffix}"] = float(np.mean([a.succeeded for a in attempts]))
        for name, of, among in (
            ("false_positive_rate", positive, ~truth),
            ("false_negative_rate", ~positive, truth),
            ("precision", truth, positive),
        ):
            if among.any():
                metrics[f"collect/{name}{suffix}"] = float(of[among].mean())
    return metrics
