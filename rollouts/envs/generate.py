"""Prior data of a simulated robot: scripted demonstrations and failures, written to a store of episodes.

Only attempts whose truth agrees with their purpose are kept: a demonstration begins undone and ends done, a failure is
done at no time, so that each of its frames is a negative for a success classifier.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollouts.envs.api import SceneEnv, Seen, derive_seed
from rollouts.envs.experts import expert, failing
from rollouts.envs.make import decision_rate, make_env
from rollouts.envs.rollout import Acting, Attempt
from rollouts.envs.types import Episode, Policy, Source, Task
from rollouts.episodes.files import EpisodeError, read_json, whole_file, write_json
from rollouts.episodes.images import ImageFormat
from rollouts.episodes.statistics import describe
from rollouts.episodes.store import INFO, LOCK, EpisodeWriter

Failure = Literal["stop", "miss", "near", "noise", "random"]
FAILURES: tuple[Failure, ...] = ("stop", "miss", "near", "noise")
GENERATED, CARD = "generated.json", "card.md"


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """What to generate; scenes are named as for :func:`rollouts.envs.make.make_env`, whose settings ``image``,
    ``image_size``, ``repeat`` and ``camera`` are.

    ``demonstrations`` and ``failures`` count episodes for each task of ``scene``, ``prior_demonstrations`` those for
    each task of the scenes ``prior``, which come as :attr:`rollouts.envs.types.Source.PRIOR`. ``horizon`` is the
    longest attempt, in decisions. ``noise`` is the deviation of what is added to each dimension of an expert's action.
    A demonstration goes on for ``hold`` decisions after its first success, as a person's would: its last frames then
    show a task that is done beyond doubt, which is what a success model learns from.

    ``chain`` demonstrations follow each other without a reset of the scene, the tasks in turn, so that each begins
    where the last one ended (after an arm's ``home``, where that is set); 1 resets every time. An attempt that is
    rejected is followed by a reset.

    ``kinds`` of failures, taken in turn: ``stop`` is an expert that stands still after a while, ``miss`` one that sees
    the object in a wrong place, ``near`` one that is cut off 1 to 3 decisions before success, ``noise`` one with
    ``failure_noise``, ``random`` a random walk. After ``attempts`` rejected ones an episode is given up, with an error.

    All is drawn from ``seed``. Raises :class:`rollouts.episodes.files.EpisodeError` for settings without a meaning.
    """

    path: str
    scene: str
    demonstrations: int = 5
    failures: int = 5
    prior: tuple[str, ...] = ()
    prior_demonstrations: int = 10
    horizon: int = 80
    noise: float = 0.1
    hold: int = 0
    chain: int = 1
    home: bool = True
    kinds: tuple[Failure, ...] = FAILURES
    failure_noise: float = 2.0
    attempts: int = 50
    image: bool = False
    image_size: int = 84
    repeat: int = 3
    camera: str = "front"
    seed: int = 0
    shard_size: int = 16
    image_format: ImageFormat = "png"

    def __post_init__(self) -> None:
        for name in ("demonstrations", "failures", "prior_demonstrations", "hold"):
            if getattr(self, name) < 0:
                raise EpisodeError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("horizon", "chain", "attempts"):
            if getattr(self, name) < 1:
                raise EpisodeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.failures and not self.kinds:
            raise EpisodeError(f"{self.failures} failures, but no kinds of them: name some of {', '.join(FAILURES)}")
        if len({self.scene, *self.prior}) != 1 + len(self.prior):
            raise EpisodeError("a scene comes twice: prior data are of other scenes, each named once")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the episodes of one scene are: ``done`` of ``total`` are in, of which an earlier call left ``found``;
    ``rejected`` attempts of this one were not kept."""

    scene: str
    done: int
    total: int
    found: int
    rejected: int


def generate(
    config: GenerateConfig,
    progress: Callable[[Progress], None] | None = None,
    make: Callable[..., SceneEnv] = make_env,
) -> Path:
    """Fills the store ``config.path`` and returns it; what it holds is also told in its ``card.md``.

    A call that was interrupted is taken up again by repeating it, and gives the same store bit for bit; metadata tell
    how many attempts were rejected before each episode (``rejected``) and how it was made (``kind``). ``progress`` is
    called after each episode, or chain of them; ``make`` builds the scenes.

    Raises :class:`rollouts.episodes.files.EpisodeError` where the folder holds something else, or a script cannot do
    what is wanted of it, and :class:`rollouts.envs.api.EnvError` for a scene that there is not, or has no scripts.
    """
    path = Path(config.path)
    plain = {key: _plain(value) for key, value in asdict(config).items() if key != "path"}
    _check_folder(path, plain)
    with ExitStack() as stack:
        scenes = []
        for name in (config.scene, *config.prior):
            # All of them before anything is written: a name that is wrong must not cost the episodes of another.
            env = make(
                name, image=config.image, image_size=config.image_size, repeat=config.repeat, camera=config.camera
            )
            stack.callback(env.close)
            scenes.append(_Scene(config, name, env))
        writer = EpisodeWriter(
            path,
            shard_size=config.shard_size,
            image_format=config.image_format,
            known="skip",
            rate=decision_rate(config.scene, config.repeat),
        )
        with writer:
            # Again, now that nobody else writes here.
            _check_folder(path, plain)
            write_json(path / GENERATED, plain)
            for scene in scenes:
                _fill(writer, scene, progress)
    with whole_file(path / CARD) as card:
        card.write_text(f"# Episodes of {config.scene}\n\n{describe(path).markdown()}", encoding="utf-8")
    return path


def _check_folder(path: Path, plain: Mapping[str, Any]) -> None:
    """A folder with episodes in it is tied to the settings that they were made with."""
    file = path / GENERATED
    if not file.is_file():
        if path.is_dir() and any(inside.name != LOCK for inside in path.iterdir()):
            raise EpisodeError(f"{path}: holds something else; generate into a folder of its own")
        return
    other = read_json(file)
    differing = [key for key in plain if other.get(key) != plain[key]]
    if differing and (path / INFO).is_file():
        what = ", ".join(f"{key} {other.get(key)!r} (now {plain[key]!r})" for key in differing)
        raise EpisodeError(f"{path}: was generated with {what}; go on with the same settings, or use another folder")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _fill(writer: EpisodeWriter, scene: "_Scene", progress: Callable[[Progress], None] | None) -> None:
    done = found = rejected = 0
    for ids, make in scene.jobs():
        if all(id in writer for id in ids):
            found += len(ids)
        else:
            for episode in make():
                writer.write(episode)
                rejected += episode.metadata["rejected"]
        done += len(ids)
        if progress is not None:
            progress(Progress(scene.name, done, scene.total, found, rejected))


class _Scene:
    """The episodes of one scene."""

    def __init__(self, config: GenerateConfig, name: str, env: SceneEnv) -> None:
        """Raises :class:`rollouts.envs.api.EnvError` for a task without a script."""
        self.name = name
        self._config = config
        self._env = env
        for task in env.tasks:
            expert(task.name)
        own = name == config.scene
        self._source = Source.DEMONSTRATION if own else Source.PRIOR
        self._wanted = (config.demonstrations if own else config.prior_demonstrations) * len(env.tasks)
        self._failures = config.failures * len(env.tasks) if own else 0
        self.total = self._wanted + self._failures

    def jobs(self) -> Iterator[tuple[list[str], Callable[[], Iterator[Episode]]]]:
        """Ids, and what makes their episodes, out of nothing but the configuration: in any company, at any time."""
        for start in range(0, self._wanted, self._config.chain):
            numbers = range(start, min(start + self._config.chain, self._wanted))
            yield [self._id(self._source, number) for number in numbers], partial(self._demonstrations, numbers)
        for number in range(self._failures):
            yield [self._id(Source.FAILURE, number)], partial(self._failure, number)

    def _id(self, source: Source, number: int) -> str:
        return f"{self.name}/{source}/{number:04d}"

    def _demonstrations(self, numbers: range) -> Iterator[Episode]:
        """Attempts in a chain, the first and each after a rejected one from a hard reset."""
        hard = True
        for number in numbers:
            task = self._task(number)
            policy = expert(task.name, self._config.noise)
            for rejected in range(self._config.attempts):
                seed = derive_seed(self._config.seed, self.name, self._source, number, rejected)
                seen = self._begin(task, seed, hard)
                made = self._attempt(policy, task, seen, self._source, number, seed, hard, rejected, "expert")
                hard = made is None or not made.succeeded or made.over
                if made is not None and made.succeeded:
                    yield made.episode
                    break
            else:
                raise self._given_up(task, "begin undone and end with the task done", "lower noise, or raise horizon")

    def _failure(self, number: int) -> Iterator[Episode]:
        task = self._task(number)
        kind = self._config.kinds[number // len(self._env.tasks) % len(self._config.kinds)]
        policy = self._failing(kind, task)
        for rejected in range(self._config.attempts):
            seed = derive_seed(self._config.seed, self.name, Source.FAILURE, number, rejected)
            seen = self._begin(task, seed, hard=True)
            made = self._attempt(policy, task, seen, Source.FAILURE, number, seed, True, rejected, kind)
            if made is None:
                continue
            episode = made.episode
            if kind == "near":
                short = int(np.random.default_rng(seed).integers(1, 4))
                if not made.succeeded or len(episode) <= short:
                    continue
                episode = _cut(episode, len(episode) - short)
            if not episode.success.any():
                yield episode
                return
        raise self._given_up(task, f"fail by {kind!r} without a moment of success", "choose other kinds of failures")

    def _task(self, number: int) -> Task:
        return self._env.tasks[number % len(self._env.tasks)]

    def _failing(self, kind: Failure, task: Task) -> Policy:
        match kind:
            case "near":
                return expert(task.name, self._config.noise)
            case "noise":
                return expert(task.name, self._config.failure_noise)
            case "stop" | "miss" | "random":
                return failing(kind, task.name, self._config.noise)

    def _begin(self, task: Task, seed: int, hard: bool) -> Seen:
        if hard:
            return self._env.reset(seed=derive_seed(seed, "reset"), options={"task": task.name})
        if self._config.home:
            self._env.home()
        return self._env.switch(task.name)

    def _attempt(
        self, policy: Policy, task: Task, seen: Seen, source: Source, number: int, seed: int, hard: bool, rejected: int,
        kind: str,
    ) -> Attempt | None:  # fmt: skip
        """None where the task is done before the first action."""
        observation, info = seen
        if info["success"]:
            return None
        return Acting(self._env, policy, source=source).attempt(
            self._id(source, number),
            task,
            observation,
            seed,
            self._config.horizon,
            hold=0 if source is Source.FAILURE else self._config.hold,
            scene=self.name,
            kind=kind,
            hard_reset=hard,
            instant=False,
            rejected=rejected,
        )

    def _given_up(self, task: Task, what: str, advice: str) -> EpisodeError:
        return EpisodeError(
            f"{self.name}, task {task.name!r}: {self._config.attempts} attempts, and none would {what}; {advice}"
        )


def _cut(episode: Episode, steps: int) -> Episode:
    """Its first ``steps``, as an attempt that was cut off."""
    arrays: dict[str, Any] = {n: getattr(episode, n)[:steps] for n in ("actions", "rewards", "success", "detected")}
    observations = {key: values[: steps + 1] for key, values in episode.observations.items()}
    return replace(episode, observations=observations, terminated=False, truncated=True, **arrays)
