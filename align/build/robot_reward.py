"""A robot's reward model: trained on the prior data, reported on, and read by the collectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.build.hosting import host_reward
from align.build.robot_scene import open_scene
from align.recipe.robot import BackboneReward, RobotRecipe, TruthReward, VLMReward
from rollouts.envs.types import Episode, Source, Task

if TYPE_CHECKING:
    from rewards.success.batched import BatchedModel
    from rewards.success.model import SuccessModel

Say = Callable[[str], None]

REPORT = "report"
"""Folder of the success model's report, inside the model's."""

HAND = (0, 1, 2)
"""Where a Meta-World state has the hand's position."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A trained success model in a folder, and how its word is taken.

    ``caller`` is who asks the one that lives in an actor of its own, where there is one.
    """

    folder: Path
    detector: Any
    boxes: Mapping[str, Any]
    caller: Any = None

    def model(self) -> "SuccessModel":
        """For a collector: that of the actor, or one that is loaded here."""
        from rewards.success.load import load_model

        return load_model(self.folder) if self.caller is None else self.caller


def lives_apart(recipe: RobotRecipe) -> bool:
    """Whether the success model has an actor of its own."""
    section = recipe.reward
    if isinstance(section, TruthReward):
        return False
    return isinstance(section, VLMReward) if section.own_actor is None else section.own_actor


def hosted(recipe: RobotRecipe, reward: Reward, place: Any) -> Reward:
    """The reward with its model in an actor of its own, for collectors to call; the cluster ends it with the others."""

    def build() -> "BatchedModel":
        from rewards.success.batched import BatchedModel
        from rewards.success.load import load_model

        return BatchedModel(load_model(reward.folder))

    part = host_reward(place, recipe.cluster, build, recipe.rollout.collectors)
    return replace(reward, caller=place.caller(part))


def success_model(recipe: RobotRecipe, prior: Sequence[Episode], folder: Path, say: Say) -> Reward:
    """A success model trained on the prior data, or the one that an earlier start has trained; with its report."""
    from rewards.success.detector import DetectorConfig, learn_boxes
    from rewards.success.frames import FrameConfig, frames_of
    from rewards.success.model import SUCCESS_FILE

    section = recipe.reward
    assert not isinstance(section, TruthReward)
    path = folder / "reward"
    if not (path / SUCCESS_FILE).exists():
        model = _untrained(recipe)
        fitted = model.fit(frames_of(prior, FrameConfig(section.positive_frames, section.ambiguous_frames)))
        model.save(path)
        for name, value in sorted(fitted.items()):
            if name.endswith(("threshold", "rate")):
                say(f"{name} {value:.4f} on episodes that a head has not seen")
    boxes = {}
    if section.hand_margin is not None:
        boxes = dict(learn_boxes(prior, HAND, section.hand_margin, section.positive_frames))
    config = DetectorConfig(section.threshold, section.consecutive, section.min_steps)
    reward = Reward(path.resolve(), config, boxes)
    _report(recipe, reward, path, say)
    return reward


def ranker(recipe: RobotRecipe, prior: Sequence[Episode], tasks: Sequence[Task]) -> Any:
    """A trajectory discriminator fitted to the prior data, with its demonstrations as references; None without one.

    Who made an episode is what its metadata call its ``kind``, or its source. Fitting takes seconds and is
    reproducible, so that a run that goes on fits it again. Raises :class:`SuccessError` where one of ``tasks`` is not
    shown, or nothing differs from what shows it: the run would end at its first attempt.
    """
    section = recipe.ranker
    if section is None:
        return None
    from rewards.success.discriminator import DiscriminatorConfig, TrajectoryDiscriminator
    from rewards.success.errors import SuccessError
    from rewards.success.trajectories import TrajectoryConfig

    policies: dict[str, list[Episode]] = {}
    for episode in prior:
        policies.setdefault(str(episode.metadata.get("kind", episode.source)), []).append(episode)
    for task in tasks:
        sources = {episode.source for episode in prior if episode.task.name == task.name}
        if Source.DEMONSTRATION not in sources:
            raise SuccessError(f"ranker: the prior data do not show '{task.name}'; give demonstrations, or no ranker")
        if len(sources) == 1:
            raise SuccessError(f"ranker: the prior data hold no failures at '{task.name}'; give some, or no ranker")
    config = DiscriminatorConfig(TrajectoryConfig(source=section.source), steps=section.steps, seed=recipe.seed)
    discriminator = TrajectoryDiscriminator(config)
    discriminator.fit(policies)
    discriminator.set_references([episode for episode in prior if episode.source is Source.DEMONSTRATION])
    return discriminator


def _untrained(recipe: RobotRecipe) -> Any:
    section = recipe.reward
    if isinstance(section, BackboneReward):
        from rewards.success.backbone import BackboneConfig, BackboneModel

        return BackboneModel(BackboneConfig(max_false_positive_rate=section.max_false_positive_rate, seed=recipe.seed))
    from rewards.success.vlm import LoraSettings, VLMConfig, VLMModel

    assert not isinstance(section, TruthReward)
    return VLMModel(
        VLMConfig(
            model=section.model,
            question=section.question,
            max_false_positive_rate=section.max_false_positive_rate,
            lora=LoraSettings(rank=section.lora_rank, steps=section.lora_steps),
            seed=recipe.seed,
        )
    )


def _report(recipe: RobotRecipe, reward: Reward, path: Path, say: Say) -> None:
    """The success model on scripted attempts that it has not seen, against the simulator's truth; told, not used."""
    if recipe.environment.type == "gym" or (path / REPORT).exists():
        return
    from rewards.success.load import load_model
    from rewards.success.report import judge_episodes, success_report
    from rewards.success.report_files import write_report
    from rollouts.envs.api import derive_seed
    from rollouts.envs.experts import expert
    from rollouts.envs.rollout import Acting, from_hard_resets

    model = load_model(reward.folder)
    env = open_scene(recipe.environment, image=True)
    try:
        episodes = [
            episode
            for noise in (0.1, 0.5)
            for task in env.tasks
            for episode in from_hard_resets(
                Acting(env, expert(task.name, noise)),
                5,
                recipe.environment.horizon,
                derive_seed(recipe.seed, "reward report", str(noise)),
                [task.name],
                hold=10,  # a detector is late, and may be
            )
        ]
    finally:
        env.close()
    report = success_report(
        judge_episodes(model, episodes),
        (0.5, 0.9, 0.98),
        {"the run's detector": (reward.detector, reward.boxes)},
        lambda name: model.threshold(next(task for task in env.tasks if task.name == name)),
    )
    write_report(report, path / REPORT)
    say(f"how good the reward is: {path / REPORT}")
