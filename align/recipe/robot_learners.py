"""The learner of a robot's recipe: networks, and how they are updated."""

from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section


class ActorCritic(Section):
    """What the learners of robots share: networks, and how they are updated."""

    discount: float = Field(default=0.97, gt=0, lt=1)
    """Discount of a decision; with -1 for each and 0 for the last a value counts the decisions that are left."""
    hidden: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (128, 128)
    """Units of each hidden layer, of actor and critics."""
    actor_lr: float = Field(default=3e-4, gt=0)
    """Learning rate of the actor."""
    critic_lr: float = Field(default=3e-4, gt=0)
    """Learning rate of the critics, and of the encoder of images while the actor only imitates."""
    encoder_lr: float | None = Field(default=None, ge=0)
    """Learning rate at which the critics train the encoder of images; 0 keeps what imitation has taught it; by default
    critic_lr."""
    tau: float = Field(default=5e-3, gt=0, le=1)
    """Share of the new critics in their targets at each update."""
    bc_steps: int = Field(default=0, ge=0)
    """The first so many updates only imitate the demonstrations."""
    bc: Literal["loss_ratio", "value", "fixed", "none"] = "loss_ratio"
    """Imitation beside the actor's own loss: of its size throughout (`loss_ratio`, RoboFuME), relative to the size of
    the values (`value`, TD3+BC), at a `fixed` weight, or `none`."""
    bc_weight: float = Field(default=1.0, ge=0)
    """Weight of the imitation loss, relative to what `bc` says."""
    bc_form: Literal["log_likelihood", "squared"] = "log_likelihood"
    """Imitation by likelihood, which also learns how sure to be, or by squared distance."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """The policy that acts and is kept is a running mean of the trained one's weights, of which each update keeps so
    much; 0 is the trained one itself."""
    temperature: float = Field(default=1.0, gt=0)
    """Weight of the entropy at the start."""
    temperature_lr: float = Field(default=1e-4, ge=0)
    """Learning rate of the temperature; 0 keeps it."""
    clip_targets: bool = False
    """No target leaves what rewards of -1 and 0 can pay."""
    target_entropy: float | None = None
    """Entropy that the temperature aims at, in nats; by default -A for A action dimensions."""
    max_grad_norm: float | None = Field(default=10.0, gt=0)
    """Gradients are clipped to this norm; null does not clip."""


class Conservative(ActorCritic):
    """What Cal-QL and CQL share."""

    critics: int = Field(default=2, gt=0)
    """Critics of the ensemble."""
    alpha: float = Field(default=0.05, ge=0)
    """Weight of the conservative term; with rewards of -1 and 0, 1 destroys the offline policy and 0.05 does not."""
    actions: int = Field(default=4, gt=0)
    """Actions sampled at random, at the state and at the next one, for the conservative term."""
    alpha_online: float | None = Field(default=None, ge=0)
    """The same once there is own experience; by default alpha."""
    max_target_backup: bool = False
    """The target is the best of the sampled next actions."""


class CalQLLearner(Conservative):
    """Calibrated Q-learning (arXiv 2303.05479), before and after going online."""

    type: Literal["calql"]
    """Calibrated Q-learning (arXiv 2303.05479)."""


class CQLLearner(Conservative):
    """Conservative Q-learning (arXiv 2006.04779): the same without calibration."""

    type: Literal["cql"]
    """Conservative Q-learning (arXiv 2006.04779)."""


class RLPDLearner(ActorCritic):
    """Reinforcement learning with prior data (arXiv 2302.02948): an ensemble with LayerNorm, half the batch offline."""

    type: Literal["rlpd"]
    """Reinforcement learning with prior data (arXiv 2302.02948)."""
    critics: int = Field(default=10, gt=0)
    """Critics of the ensemble."""
    subset: int = Field(default=2, gt=0)
    """The target is the least of so many, drawn anew each time."""
    critic_updates: int = Field(default=1, gt=0)
    """Updates of the critics for each of the actor."""
    backup_entropy: bool = False
    """The target counts the entropy of the next action."""


class BCLearner(ActorCritic):
    """Behaviour cloning: the actor imitates the demonstrations, and nothing else."""

    type: Literal["bc"]
    """Behaviour cloning."""


RobotLearner = Annotated[CalQLLearner | CQLLearner | RLPDLearner | BCLearner, Field(discriminator="type")]
