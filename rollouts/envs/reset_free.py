"""Who does what next when nobody tidies up: tasks that undo each other, and a hand from outside only when stuck.

Nothing here knows a simulator. The scheduler of a robot in a laboratory is this very object, with other
:class:`Controls`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

from rollouts.envs.api import EnvError, Info, SceneEnv, Seen
from rollouts.envs.types import Observation

_log = logging.getLogger(__name__)


class Cause(StrEnum):
    """Why the whole scene is reset."""

    FIRST = "first"
    EPISODES = "episodes"
    STEPS = "steps"
    OVER = "over"
    STUCK = "stuck"
    ALL_DONE = "all_done"

    @property
    def message(self) -> str:
        """For the person who does it."""
        return {
            Cause.FIRST: "a run begins",
            Cause.EPISODES: "as many episodes have passed as were planned between resets",
            Cause.STEPS: "as many steps have passed as were planned between resets",
            Cause.OVER: "the environment cannot go on by itself",
            Cause.STUCK: "too many attempts in a row have failed",
            Cause.ALL_DONE: "every task of the scene looks done, so none can begin",
        }[self]

    @property
    def planned(self) -> bool:
        """Whether it was known beforehand; the others are interventions."""
        return self in (Cause.FIRST, Cause.EPISODES, Cause.STEPS)


class Controls(Protocol):
    """What the scheduler can make happen. On a robot, ``hard_reset`` asks a person and waits."""

    def hard_reset(self, task: str, seed: int, cause: Cause) -> Seen:
        """Puts the whole scene to where ``task`` begins."""
        ...

    def switch(self, task: str) -> Seen:
        """Only the task changes."""
        ...

    def home(self) -> Seen:
        """The arm goes back to its start; things stay."""
        ...


class EnvControls:
    """The controls of an environment. ``ask``, if given, is told of each hard reset first and may wait for a person."""

    def __init__(self, env: SceneEnv, ask: Callable[[str], None] | None = None) -> None:
        self._env, self._ask = env, ask

    def hard_reset(self, task: str, seed: int, cause: Cause) -> Seen:
        if self._ask is not None:
            self._ask(f"{cause.message}: please put the scene to where {task!r} begins")
        return self._env.reset(seed=seed, options={"task": task})

    def switch(self, task: str) -> Seen:
        return self._env.switch(task)

    def home(self) -> Seen:
        return self._env.home()


def ask_person(message: str) -> None:
    """Asks at the terminal, and waits for the Enter key."""
    input(f"{message}, then press Enter ")


@dataclass(frozen=True, slots=True)
class ResetFreeConfig:
    """When an attempt ends, and what follows.

    ``max_steps``: decisions until the time is out. ``on_timeout``: ``stay`` tries the same task again, as SERL does
    (arXiv 2401.16013; RoboFuME does not say), ``switch`` goes on to the next one. ``homing``: the arm goes home before
    each attempt; without it a failing pose repeats itself. ``stuck_after``: failures in a row before the scene is reset
    by hand, 0 for never. ``reset_every_episodes``, ``reset_every_steps``: planned resets, 0 for none; steps are
    counted in decisions, and a reset waits for the end of the attempt.

    Raises :class:`rollouts.envs.api.EnvError` for numbers without a meaning.
    """

    max_steps: int = 80
    on_timeout: Literal["stay", "switch"] = "stay"
    homing: bool = True
    stuck_after: int = 3
    reset_every_episodes: int = 0
    reset_every_steps: int = 0

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise EnvError(f"max_steps must be at least 1, got {self.max_steps}")
        for name in ("stuck_after", "reset_every_episodes", "reset_every_steps"):
            if getattr(self, name) < 0:
                raise EnvError(f"{name} must be at least 0 (0: never), got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Start:
    """The beginning of an attempt.

    ``cause`` is why the scene was reset before it, None where it was not. ``skipped`` are tasks that were passed over
    because they were done already. ``instant``: this task looks done too; see :meth:`ResetFreeScheduler.start`.
    """

    task: str
    observation: Observation
    info: Info
    cause: Cause | None
    skipped: tuple[str, ...]
    instant: bool


IsDone = Callable[[str, Observation, Info], bool]


@dataclass(slots=True)
class Counts:
    """Over the whole life of a scheduler. ``instant``: tasks passed over because they were done already."""

    episodes: int = 0
    steps: int = 0
    successes: int = 0
    hard_resets: int = 0
    interventions: int = 0
    instant: int = 0


class ResetFreeScheduler:
    """Alternates between the tasks of a scene: :meth:`start` before each attempt, :meth:`finish` after it.

    Success leads to the next task, and a failure to what the configuration says. The first scene is set up by a hard
    reset. Hard resets that were not planned count as interventions; one that was due anyway does not. ``first`` is the
    task to begin with.
    """

    def __init__(
        self, tasks: Sequence[str], config: ResetFreeConfig, controls: Controls, first: str | None = None
    ) -> None:
        if not tasks or len(set(tasks)) < len(tasks) or (first is not None and first not in tasks):
            raise EnvError(f"a scene has tasks of different names, the first among them; got {list(tasks)}, {first!r}")
        self.config = config
        self.counts = Counts()
        self._tasks = tuple(tasks)
        self._controls = controls
        self._at = self._tasks.index(first) if first is not None else 0
        self._failures = 0
        self._episodes_since, self._steps_since = 0, 0
        self._started, self._over, self._open = False, False, False

    def start(self, seed: int, is_done: IsDone) -> Start:
        """Brings about the next attempt; a hard reset, if one is due, draws from ``seed``.

        No attempt begins at what is done already: that task is passed over, and counted. If all tasks are, the scene is
        reset by hand; if they are even then, the task begins all the same, marked ``instant``, since what looks done
        in a scene just set up for it is the judge's mistake, and asking again would ask for ever.
        """
        if self._open:
            raise EnvError("finish the last attempt before the next one starts")
        self._open = True
        cause = self._due()
        if cause is None:
            if self.config.homing:
                self._controls.home()
            seen = self._controls.switch(self._task)
        else:
            seen = self._hard_reset(seed, cause)
        skipped: list[str] = []
        while True:
            for _ in self._tasks:
                if not is_done(self._task, *seen):
                    return Start(self._task, *seen, cause=cause, skipped=tuple(skipped), instant=False)
                self.counts.instant += 1
                skipped.append(self._task)
                self._advance()
                seen = self._controls.switch(self._task)
            if cause is not None:
                return Start(self._task, *seen, cause=cause, skipped=tuple(skipped), instant=True)
            cause = Cause.ALL_DONE
            seen = self._hard_reset(seed, cause)

    def finish(self, success: bool, steps: int, over: bool = False) -> None:
        """The attempt has ended after ``steps`` decisions; without success it failed.

        ``over``: the environment cannot go on (it terminated or truncated by itself, a person or a guard stopped it).
        """
        if not self._open:
            raise EnvError("start an attempt before one is finished")
        self._open = False
        self.counts.episodes += 1
        self.counts.steps += steps
        self._episodes_since += 1
        self._steps_since += steps
        self._over = over
        if success:
            self.counts.successes += 1
            self._failures = 0
            self._advance()
        else:
            self._failures += 1
            if self.config.on_timeout == "switch":
                self._advance()

    def state_dict(self) -> dict[str, Any]:
        """Between attempts. The scene's own state belongs to the environment."""
        if self._open:
            raise EnvError("a scheduler is saved between attempts, not within one")
        counts = {name: getattr(self.counts, name) for name in Counts.__slots__}
        return {
            "task": self._task,
            "failures": self._failures,
            "episodes_since": self._episodes_since,
            "steps_since": self._steps_since,
            "started": self._started,
            "over": self._over,
            "counts": counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at = self._tasks.index(state["task"])
        self._failures = state["failures"]
        self._episodes_since, self._steps_since = state["episodes_since"], state["steps_since"]
        self._started, self._over, self._open = state["started"], state["over"], False
        self.counts = Counts(**state["counts"])

    @property
    def _task(self) -> str:
        return self._tasks[self._at]

    def _advance(self) -> None:
        self._at = (self._at + 1) % len(self._tasks)

    def _due(self) -> Cause | None:
        config = self.config
        if not self._started:
            return Cause.FIRST
        if 0 < config.reset_every_episodes <= self._episodes_since:
            return Cause.EPISODES
        if 0 < config.reset_every_steps <= self._steps_since:
            return Cause.STEPS
        if self._over:
            return Cause.OVER
        if 0 < config.stuck_after <= self._failures:
            return Cause.STUCK
        return None

    def _hard_reset(self, seed: int, cause: Cause) -> Seen:
        seen = self._controls.hard_reset(self._task, seed, cause)
        self._started, self._over = True, False
        self._failures, self._episodes_since, self._steps_since = 0, 0, 0
        self.counts.hard_resets += 1
        if not cause.planned:
            self.counts.interventions += 1
            _log.info("intervention %d at %s: %s", self.counts.interventions, self._task, cause.message)
        return seen
