"""What a success model is worth, on held-out episodes against the simulator's truth: rates, never accuracy alone.

Frames: single calls of the model, at several thresholds. Episodes: what a detector would have done, which ended an
attempt wrongly, and how late a success is seen.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.polar.bootstrap import BootstrapConfig, Estimate, cluster_mean
from rewards.success.confusion import Confusion, confusion
from rewards.success.detector import DetectorConfig, Gate, StateBox
from rewards.success.errors import SuccessError
from rewards.success.model import SuccessModel
from rollouts.envs.types import IMAGE, STATE, Episode

ALL_TASKS = "all"
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Judged:
    """A held-out episode with the model's probability of success after each action, [T]; frame 0 is not judged."""

    episode: Episode
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(self.episode),):
            raise ValueError(f"episode '{self.episode.id}' has {len(self.episode)} steps and "
                             f"{self.probabilities.shape} probabilities")  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrameRates:
    """Of all frames of a task at one threshold; a rate is None where nothing speaks for it."""

    task: str
    threshold: float
    counts: Confusion
    false_positive_rate: Estimate | None
    false_negative_rate: Estimate | None
    precision: Estimate | None
    recall: Estimate | None
    prevalence: Estimate | None


@dataclass(frozen=True, slots=True)
class EpisodeRates:
    """Of all episodes of a task under one detector.

    ``false_ends``: the share of episodes that it would have ended while the task was not done. ``misses``: the share
    of episodes with a success that it would not have ended at all. ``precision``: the share of its ends that were
    right. ``lateness``: mean steps from the first success to the end, over right ends. ``lead``: median steps from a
    false end to the episode's first success, over those that had one later; None where there were none.
    """

    task: str
    detector: str
    episodes: int
    successes: int
    ends: int
    false_ends: Estimate
    misses: Estimate | None
    precision: Estimate | None
    lateness: float | None
    lead: float | None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One threshold of a task's curve; None where there were no such frames."""

    threshold: float
    false_positive_rate: float | None
    false_negative_rate: float | None
    precision: float | None


@dataclass(frozen=True, slots=True)
class SuccessReport:
    """All of it; ``curves`` maps a task to its points, thresholds ascending."""

    frames: tuple[FrameRates, ...]
    episodes: tuple[EpisodeRates, ...]
    curves: Mapping[str, tuple[CurvePoint, ...]]


def judge_episodes(model: SuccessModel, episodes: Iterable[Episode]) -> list[Judged]:
    """Each episode with what ``model`` says of its frames."""
    judged = []
    for episode in episodes:
        frames = {key: episode.observations[key][1:] for key in (IMAGE, STATE) if key in episode.observations}
        judged.append(Judged(episode, model.probabilities(frames, episode.task)))
    return judged


def recorded(episodes: Iterable[Episode]) -> list[Judged]:
    """Episodes with the probabilities that a detector recorded while they ran.

    Raises :class:`SuccessError` where one was not watched.
    """
    judged = []
    for episode in episodes:
        if not np.isfinite(episode.detected).all():
            raise SuccessError(f"episode '{episode.id}' was not watched by a detector; judge it with a model instead")
        judged.append(Judged(episode, episode.detected))
    return judged


def success_report(
    judged: Sequence[Judged],
    thresholds: Sequence[float],
    detectors: Mapping[str, tuple[DetectorConfig, Mapping[str, StateBox]]],
    own_threshold: Callable[[str], float] | None = None,
    bootstrap: BootstrapConfig | None = None,
) -> SuccessReport:
    """Rates for each task and over all of them.

    ``detectors`` names settings and state boxes; a detector without a threshold takes ``own_threshold(task name)``,
    the model's own. Intervals are 95%, by resampling episodes. Held-out episodes must go on for a few steps after their
    success: a detector that asks for several frames in a row has none to see where they stop at the first.

    Raises :class:`SuccessError` where nothing was judged.
    """
    if not judged:
        raise SuccessError("there are no judged episodes to report on; give held-out episodes")
    groups = _by_task(judged)
    frames = [_frame_rates(task, rows, t, bootstrap) for task, rows in groups.items() for t in thresholds]
    episodes = []
    for name, (config, boxes) in detectors.items():

        def gate(task: str, config: DetectorConfig = config, boxes: Mapping[str, StateBox] = boxes) -> Gate:
            limit = config.threshold if config.threshold is not None else own_threshold and own_threshold(task)
            if limit is None:
                raise SuccessError("a detector has no threshold of its own; set one, or say what the model's is")
            return Gate(config.consecutive, config.minimum_steps, limit, boxes.get(task))

        episodes += [_episode_rates(task, rows, name, gate, bootstrap) for task, rows in groups.items()]
    return SuccessReport(tuple(frames), tuple(episodes), {task: tuple(_curve(rows)) for task, rows in groups.items()})


def first_call(judged: Judged, gate: Gate) -> int | None:
    """The step, from 0, after which a detector would have ended the episode; None where it would not."""
    states = judged.episode.observations.get(STATE)
    for step, probability in enumerate(judged.probabilities):
        if gate.step(float(probability), None if states is None else states[step + 1]):
            return step
    return None


def _by_task(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for item in judged:
        groups.setdefault(item.episode.task.name, []).append(item)
    return groups if len(groups) == 1 else {**groups, ALL_TASKS: list(judged)}


def _frame_rates(task: str, rows: Sequence[Judged], threshold: float, bootstrap: BootstrapConfig | None) -> FrameRates:
    called = np.concatenate([item.probabilities >= threshold for item in rows])
    truth = np.concatenate([item.episode.success for item in rows])
    episode = np.concatenate([np.full(len(item.probabilities), place) for place, item in enumerate(rows)])

    def rate(values: Flags, among: Flags) -> Estimate | None:
        return _share(values[among], episode[among].tolist(), bootstrap)

    return FrameRates(
        task,
        threshold,
        confusion(called, truth),
        false_positive_rate=rate(called, ~truth),
        false_negative_rate=rate(~called, truth),
        precision=rate(truth, called),
        recall=rate(called, truth),
        prevalence=rate(truth, np.ones_like(truth)),
    )


def _episode_rates(
    task: str,
    rows: Sequence[Judged],
    detector: str,
    gate: Callable[[str], Gate],
    bootstrap: BootstrapConfig | None,
) -> EpisodeRates:
    calls = [first_call(item, gate(item.episode.task.name)) for item in rows]
    done = [int(np.argmax(item.episode.success)) if item.episode.success.any() else None for item in rows]
    right = [bool(item.episode.success[call]) for item, call in zip(rows, calls, strict=True) if call is not None]
    wrong = [call is not None and not item.episode.success[call] for item, call in zip(rows, calls, strict=True)]
    late = [c - d for c, d, w in zip(calls, done, wrong, strict=True) if c is not None and d is not None and not w]
    leads = [
        d - c for c, d, w in zip(calls, done, wrong, strict=True) if w and c is not None and d is not None and d > c
    ]
    missed = [call is None for call, first in zip(calls, done, strict=True) if first is not None]
    ends = _share(np.array(wrong), range(len(wrong)), bootstrap)
    assert ends is not None  # there is at least one episode of each task
    return EpisodeRates(
        task,
        detector,
        episodes=len(rows),
        successes=len(missed),
        ends=len(right),
        false_ends=ends,
        misses=_share(np.array(missed, np.bool_), range(len(missed)), bootstrap),
        precision=_share(np.array(right, np.bool_), range(len(right)), bootstrap),
        lateness=float(np.mean(late)) if late else None,
        lead=float(np.median(leads)) if leads else None,
    )


def _share(values: Flags, clusters: Sequence[Hashable], bootstrap: BootstrapConfig | None) -> Estimate | None:
    return cluster_mean(values, list(clusters), bootstrap, (0.0, 1.0)) if len(values) else None


def _curve(rows: Sequence[Judged], points: int = 101) -> Iterable[CurvePoint]:
    """At thresholds even in log-odds, -7 to 7: the interesting ones lie close to 1."""
    probabilities = np.concatenate([item.probabilities for item in rows])
    truth = np.concatenate([item.episode.success for item in rows])
    for threshold in 1 / (1 + np.exp(-np.linspace(-7, 7, points))):
        counts = confusion(probabilities >= threshold, truth)
        yield CurvePoint(float(threshold), counts.false_positive_rate, counts.false_negative_rate, counts.precision)
