"""The parts of a robot's run, each from its section of the recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from align.build.robot_reward import Reward
from align.build.robot_scene import open_scene, scene_name
from align.errors import UserError
from align.recipe.robot import RobotRecipe, TruthReward
from align.tracking.jsonl import METRICS_FILE, read_metrics
from rollouts.envs.types import IMAGE, STATE, Episode, Source, Task, only

if TYPE_CHECKING:
    from align.buffers.transition_mixer import TransitionMixer
    from align.tracking.tracker import RunTracker
    from rewards.success.labeller import SuccessLabelConfig
    from rewards.success.types import LabelledEpisode
    from rollouts.envs.reset_free import ResetFreeConfig
    from rollouts.envs.rollout import Acting
    from rollouts.policies.actor import ActorPolicy
    from rollouts.policies.config import PolicyConfig
    from rollouts.types import WeightUpdate

Instructions = Mapping[str, NDArray[Any]]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an environment says of itself."""

    tasks: tuple[Task, ...]
    state_size: int
    action_size: int
    proprio: tuple[int, ...]


def look_at(recipe: RobotRecipe) -> Scene:
    """Opens the environment once, so that what is wrong with it shows before anything is made."""
    env = open_scene(recipe.environment, image=False)
    try:
        if recipe.environment.state == "proprio" and not env.proprio:
            raise UserError(
                f"environment: {scene_name(recipe.environment)} does not say what of its state the robot measures on "
                "itself: set state to true or false"
            )
        space = env.observation_space[STATE]
        return Scene(env.tasks, int(space.shape[0]), int(env.action_space.shape[0]), tuple(env.proprio))
    finally:
        env.close()


def sees(recipe: RobotRecipe) -> bool:
    """Whether somebody looks at pictures while experience is collected: the policy, or the reward."""
    return recipe.environment.image or not isinstance(recipe.reward, TruthReward)


def reset_free(recipe: RobotRecipe) -> "ResetFreeConfig":
    """How attempts follow each other."""
    from rollouts.envs.reset_free import ResetFreeConfig

    scheduler = recipe.rollout.scheduler
    alone = recipe.environment.type == "gym"
    return ResetFreeConfig(
        max_steps=recipe.environment.horizon,
        on_timeout=scheduler.on_timeout,
        homing=scheduler.home and not alone,
        stuck_after=scheduler.stuck_after,
        # A Gymnasium environment knows no way back but its reset.
        reset_every_episodes=1 if alone else scheduler.reset_every,
    )


def prior_episodes(recipe: RobotRecipe, folder: Path, say: Say) -> list[Episode]:
    """Episodes that the recipe names, or scripted ones, which are kept in the run folder."""
    prior = recipe.prior
    if prior.path is not None:
        from rollouts.envs.prior import open_episodes

        return list(open_episodes(prior.path))
    if not prior.demonstrations and not prior.failures:
        return []
    from rollouts.envs.generate import GenerateConfig, generate
    from rollouts.episodes.store import read_episodes

    environment = recipe.environment
    path = generate(
        GenerateConfig(
            path=str(folder / "prior"),
            scene=scene_name(environment),
            demonstrations=prior.demonstrations,
            failures=prior.failures,
            prior=tuple(f"metaworld:{scene}" for scene in prior.other_scenes),
            prior_demonstrations=prior.other_demonstrations,
            horizon=environment.horizon,
            noise=prior.noise,
            hold=prior.hold,
            image=sees(recipe),
            image_size=environment.image_size,
            repeat=environment.action_repeat if environment.type == "metaworld" else 1,
            seed=recipe.seed if prior.seed is None else prior.seed,
        )
    )
    episodes = list(read_episodes(path))
    say(f"{len(episodes)} scripted episodes in {path}")
    return episodes


def instructions(recipe: RobotRecipe, scene: Scene, prior: Sequence[Episode]) -> Instructions | None:
    """What the policy hears for each task, by the task's words; None where it hears nothing."""
    from rollouts.policies.instruction import MINILM, OneHotInstructions, TextInstructions, embedding_table

    words = list(dict.fromkeys([task.instruction for task in scene.tasks] + [e.task.instruction for e in prior]))
    match recipe.instruction.encoder:
        case "none":
            return None
        case "one_hot":
            return embedding_table(OneHotInstructions(words), words)
        case "minilm":
            return embedding_table(TextInstructions(MINILM), words)
        case name:
            return embedding_table(TextInstructions(name), words)


def label_config(recipe: RobotRecipe) -> "SuccessLabelConfig":
    """How steps are paid."""
    from rewards.success.labeller import SuccessLabelConfig

    section = recipe.reward
    config = SuccessLabelConfig(source="truth", gamma=recipe.learner.discount)
    if not isinstance(section, TruthReward):
        config = replace(config, source="detected", num_positive_frames=section.positive_frames)
    if recipe.ranker is not None:
        config = replace(config, bonus_weight=recipe.ranker.bonus, least_probability=recipe.ranker.least_probability)
    return config


def policy_config(recipe: RobotRecipe, scene: Scene, table: Instructions | None) -> "PolicyConfig":
    """What the policy's network looks like."""
    from rollouts.policies.config import PolicyConfig

    environment = recipe.environment
    heard = len(next(iter(table.values()))) if table else 0
    size = environment.image_size
    return PolicyConfig(
        state_size=scene.state_size if environment.state else 0,
        action_size=scene.action_size,
        instruction_size=heard,
        image_size=(size, size) if environment.image else None,
        hidden=recipe.learner.hidden,
        encoder="robofume" if environment.image else "none",
        image_features=64 if environment.image else 0,
        strides=(2, 2, 2, 1) if environment.image else (2, 1, 1, 1),
        state_columns=scene.proprio if environment.state == "proprio" else None,
    )


def mixer(
    recipe: RobotRecipe, labelled: Sequence["LabelledEpisode"], table: Instructions | None, scene: Scene
) -> "TransitionMixer":
    """Prior data and own experience."""
    from align.buffers.transition_mixer import TransitionMixConfig, TransitionMixer

    section = recipe.mixer
    config = TransitionMixConfig(
        offline_steps=recipe.schedule.offline_steps,
        offline_updates_per_step=section.offline_updates,
        batch_size=section.batch_size,
        utd=section.updates_per_decision,
        offline_ratio="proportional" if section.offline_ratio is None else section.offline_ratio,
        gamma=recipe.learner.discount,
        n_step=section.n_step,
        start_training=section.start_training,
        capacity=section.capacity,
        imitate=frozenset({Source.DEMONSTRATION, Source.PRIOR}),
        imitate_successes=section.imitate_successes,
        seed=recipe.seed,
    )
    tasks = list(dict.fromkeys([t.instruction for t in scene.tasks] + [e.episode.task.instruction for e in labelled]))
    kept = [replace(each, episode=only(each.episode, keys(recipe))) for each in labelled]
    return TransitionMixer(kept, table, config, tasks=tasks)


def keys(recipe: RobotRecipe) -> tuple[str, ...]:
    """What of an observation the policy sees; what only the reward looks at is a hundred times the size of a state."""
    environment = recipe.environment
    return (*((STATE,) if environment.state else ()), *((IMAGE,) if environment.image else ()))


def collector_factory(
    recipe: RobotRecipe, config: "PolicyConfig", table: Instructions | None, reward: Reward | None, index: int
) -> Callable[[], Any]:
    """What builds a collector, in whichever process it is to live."""

    def build() -> Any:
        from rollouts.envs.collector import EnvCollectConfig, EnvCollector

        detector = None
        if reward is not None:
            from rewards.success.detector import Detector

            detector = Detector(reward.model(), reward.detector, reward.boxes)
        return EnvCollector(
            open_scene(recipe.environment, image=sees(recipe)),
            _policy(recipe, config, table, deterministic=False),
            EnvCollectConfig(
                seed=recipe.seed, episodes=recipe.rollout.episodes_per_step, collector=index, keep=keys(recipe)
            ),
            reset_free(recipe),
            detector,
        )

    return build


def evaluated(
    recipe: RobotRecipe, config: "PolicyConfig", table: Instructions | None
) -> "tuple[Acting, Callable[[WeightUpdate], None]]":
    """Who is evaluated, in an environment of its own and by the truth, and what gives it new weights."""
    from rollouts.envs.rollout import Acting

    policy = _policy(recipe, config, table, deterministic=recipe.evaluation.deterministic)
    acting = Acting(open_scene(recipe.environment, image=recipe.environment.image), policy)
    return acting, lambda update: policy.load(update.uri)


def _policy(
    recipe: RobotRecipe, config: "PolicyConfig", table: Instructions | None, *, deterministic: bool
) -> "ActorPolicy":
    from rollouts.policies.actor import ActorPolicy
    from rollouts.policies.gaussian import GaussianPolicy

    return ActorPolicy(GaussianPolicy(config, recipe.seed), table or {}, deterministic=deterministic, seed=recipe.seed)


def camera(recipe: RobotRecipe, folder: Path, acting: "Acting", tracker: "RunTracker") -> Callable[[int], None]:
    """Films attempts after an evaluation, from hard resets that are the same at every step."""
    if not recipe.evaluation.films or recipe.environment.type == "gym":
        return lambda step: None

    def shoot(step: int) -> None:
        from rollouts.envs.film import write_film, write_filmstrip
        from rollouts.envs.rollout import from_hard_resets

        folder.mkdir(parents=True, exist_ok=True)
        for task in acting.env.tasks:
            for number in range(recipe.evaluation.films):
                frames: list[NDArray[Any]] = []
                filming = replace(acting, on_step=lambda: frames.append(acting.env.render()))  # noqa: B023
                (episode,) = from_hard_resets(filming, 1, recipe.environment.horizon, recipe.seed + number, [task.name])
                stem = folder / f"step-{step:06d}-{task.name}-{number}"
                write_film(episode, stem.with_suffix(".mp4"), frames)
                write_filmstrip(episode, stem.with_suffix(".png"), frames)
                tracker.media(f"films/{task.name}", stem.with_suffix(".mp4"), step)
                tracker.media(f"filmstrips/{task.name}", stem.with_suffix(".png"), step)

    return shoot


def imitation_step(recipe: RobotRecipe) -> int | None:
    """The step at whose end nothing but imitation has happened; None where there is no such step."""
    if recipe.learner.type == "bc":
        return None
    steps, rest = divmod(recipe.learner.bc_steps, recipe.mixer.offline_updates)
    return steps if steps and not rest and steps <= recipe.schedule.offline_steps else None


def totals(folder: Path) -> dict[str, int]:
    """Attempts, decisions and interventions of a run, from its metrics."""
    rows = dict(read_metrics(folder / METRICS_FILE)).values()
    return {
        name: round(sum(row.get(metric, 0.0) for row in rows))
        for name, metric in (
            ("attempts", "collect/episodes"),
            ("decisions", "collect/decisions"),
            ("interventions", "collect/interventions"),
        )
    }


def learner_factory(
    recipe: RobotRecipe, config: "PolicyConfig", states: NDArray[Any] | None, name: str
) -> Callable[[], Any]:
    """What builds the learner. ``states`` [N, S] of the prior data set the normalisation of what the policy sees."""

    def build() -> Any:
        from align.learners.robot import build_learner
        from cluster.weights import WeightStore

        return build_learner(recipe.learner, config, states, WeightStore(prefix=name), recipe.seed)

    return build
