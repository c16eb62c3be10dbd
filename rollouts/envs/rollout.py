"""Attempts: one, several from hard resets, and chains of them without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.api import EnvError, SceneEnv, Seen, derive_seed, named
from rollouts.envs.reset_free import EnvControls, ResetFreeConfig, ResetFreeScheduler
from rollouts.envs.types import Action, Episode, Observation, Policy, Source, SuccessDetector, Task

OnStep = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An episode, with what decides about the next one.

    ``positives`` [T]: the detector called it success after each action (all false without a detector). ``ended_by``
    success (in the eyes of whoever judged), or not. ``over``: the environment cannot go on without a reset.
    """

    episode: Episode
    positives: NDArray[np.bool_]
    succeeded: bool
    over: bool


@dataclass(frozen=True, slots=True)
class Acting:
    """Who acts in what, and who judges.

    ``by_detector``: the detector's positive ends an attempt; otherwise the truth does, and a detector only watches.
    ``on_step`` is called at the start of an attempt and after each action, when the environment can be rendered.
    """

    env: SceneEnv
    policy: Policy
    detector: SuccessDetector | None = None
    by_detector: bool = False
    source: Source = Source.POLICY
    policy_version: int = 0
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if self.by_detector and self.detector is None:
            raise EnvError("attempts that end by a detector need one")

    def is_done(self, task: str, observation: Observation, info: Any) -> bool:
        """Whether ``task`` looks done before anything was done for it."""
        if self.detector is None or not self.by_detector:
            return bool(info["success"])
        return self.detector.at_rest(observation, named(self.env.tasks, task))

    def attempt(
        self, id: str, task: Task, first: Observation, seed: int, max_steps: int, hold: int = 0, **metadata: Any
    ) -> Attempt:
        """One attempt at ``task`` from ``first``, what the environment shows now; ``seed`` is the policy's.

        It goes on for ``hold`` decisions after a success, and counts only if it is one at its end.
        """
        self.policy.reset(seed)
        if self.detector is not None:
            self.detector.reset(task)
        if self.on_step is not None:
            self.on_step()
        observations, actions = [first], list[Action]()
        rewards, truths, positives, probabilities = list[float](), list[bool](), list[bool](), list[float]()
        succeeded = terminated = truncated = False
        since = -1  # decisions since the first success
        while not (terminated or truncated or (succeeded and since >= hold)) and len(actions) < max_steps + hold:
            action = _checked(self.policy.act(observations[-1], task))
            observation, reward, terminated, truncated, info = self.env.step(action)
            if self.on_step is not None:
                self.on_step()
            positive, probability = False, float("nan")
            if self.detector is not None:
                detection = self.detector.detect(observation)
                positive, probability = detection.success, detection.probability
            truth = bool(info["success"])
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            truths.append(truth)
            positives.append(positive)
            probabilities.append(probability)
            succeeded = positive if self.by_detector else truth
            since += succeeded or since >= 0
        over = terminated or truncated
        episode = Episode(
            id=id,
            task=task,
            observations={key: np.stack([o[key] for o in observations]) for key in first},
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            success=np.array(truths, np.bool_),
            detected=np.array(probabilities, np.float32),
            terminated=succeeded or terminated,
            truncated=truncated or not (succeeded or terminated),
            source=self.source,
            policy_version=self.policy_version,
            metadata={"seed": seed, **metadata},
        )
        return Attempt(episode, np.array(positives, np.bool_), succeeded, over)


def next_attempt(acting: Acting, scheduler: ResetFreeScheduler, id: str, seed: int) -> Attempt:
    """The attempt that ``scheduler`` wants next, and its outcome reported back. ``seed`` fixes all that is drawn."""
    start = scheduler.start(derive_seed(seed, "reset"), acting.is_done)
    attempt = acting.attempt(
        id,
        named(acting.env.tasks, start.task),
        start.observation,
        seed,
        scheduler.config.max_steps,
        hard_reset=start.cause is not None,
        cause=str(start.cause or ""),
        instant=start.instant,
        skipped=list(start.skipped),
    )
    scheduler.finish(attempt.succeeded, len(attempt.episode), attempt.over)
    return attempt


def from_hard_resets(
    acting: Acting, episodes: int, max_steps: int, seed: int, tasks: Sequence[str] | None = None, hold: int = 0
) -> list[Episode]:
    """``episodes`` attempts at each of ``tasks`` (by default all), each after a hard reset, which go on for ``hold``
    decisions after a success."""
    found = []
    for task in [named(acting.env.tasks, name) for name in tasks] if tasks is not None else acting.env.tasks:
        for number in range(episodes):
            drawn = derive_seed(seed, "hard", task.name, number)
            observation, info = _reset(acting.env, task, drawn)
            id = f"hard-{seed}-{task.name}-{number:04d}"
            instant = acting.is_done(task.name, observation, info)
            attempt = acting.attempt(id, task, observation, drawn, max_steps, hold, hard_reset=True, instant=instant)
            found.append(attempt.episode)
    return found


def chain(acting: Acting, lives: int, episodes: int, config: ResetFreeConfig, seed: int) -> list[Episode]:
    """``lives`` hard resets, and after each a chain of ``episodes`` attempts without any other.

    Lives begin with the tasks in turn. Of ``config`` all counts but what resets: nobody helps a life that is stuck,
    unless every task of the scene is done at once or the environment ends by itself.
    """
    config = replace(config, stuck_after=0, reset_every_episodes=0, reset_every_steps=0)
    names = [task.name for task in acting.env.tasks]
    found = []
    for life in range(lives):
        first = names[life % len(names)]
        scheduler = ResetFreeScheduler(names, config, EnvControls(acting.env), first)
        for number in range(episodes):
            drawn = derive_seed(seed, "chain", life, number)
            id = f"chain-{seed}-{life:03d}-{number:03d}"
            episode = next_attempt(acting, scheduler, id, drawn).episode
            found.append(replace(episode, metadata={**episode.metadata, "life": life, "number": number}))
    return found


def _reset(env: SceneEnv, task: Task, seed: int) -> Seen:
    return env.reset(seed=derive_seed(seed, "reset"), options={"task": task.name})


def _checked(action: Action) -> Action:
    action = np.asarray(action, np.float32)
    if not (action.ndim == 1 and np.all(np.abs(action) <= 1.0)):
        raise EnvError(f"a policy's action is [A], each within [-1, 1]; got {action}")
    return action
