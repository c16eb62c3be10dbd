"""From the recipe's learner section to a robot's learner, in whichever process it is to live."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from align.buffers.transitions import normalisation
from align.learners.actor import ActorConfig, BCConfig, Publisher
from align.learners.actor_critic import ActorCriticConfig
from align.recipe.robot_learners import BCLearner as BCSection
from align.recipe.robot_learners import RLPDLearner as RLPDSection
from align.recipe.robot_learners import RobotLearner
from rollouts.policies.config import PolicyConfig
from rollouts.policies.gaussian import GaussianPolicy

if TYPE_CHECKING:
    from align.learners.bc import BCLearner
    from align.learners.calql import CalQLLearner
    from align.learners.rlpd import RLPDLearner


def build_learner(
    section: RobotLearner, config: PolicyConfig, states: NDArray[Any] | None, publisher: Publisher, seed: int
) -> "BCLearner | CalQLLearner | RLPDLearner":
    """The learner of a new policy. ``states`` [N, S] set what the policy takes for a usual state; None or none at all
    leave states as they are."""
    policy = GaussianPolicy(config, seed)
    if config.state_size and states is not None and len(states):
        policy.set_normalisation(*normalisation(states))
    actor = ActorConfig(
        lr=section.actor_lr,
        encoder_lr=section.critic_lr,
        max_grad_norm=section.max_grad_norm,
        bc=BCConfig(
            scaling=section.bc,
            weight=section.bc_weight,
            form=section.bc_form,
            warm_start=section.bc_steps,
        ),
        ema=section.ema,
        seed=seed,
    )
    if isinstance(section, BCSection):
        from align.learners.bc import BCLearner

        return BCLearner(policy, actor, publisher)
    common = ActorCriticConfig(
        actor=actor,
        ensemble=section.critics,
        hidden=section.hidden,
        critic_lr=section.critic_lr,
        encoder_lr=section.critic_lr if section.encoder_lr is None else section.encoder_lr,
        tau=section.tau,
        initial_temperature=section.temperature,
        temperature_lr=section.temperature_lr,
        tune_temperature=section.temperature_lr > 0,
        target_entropy=section.target_entropy,
        value_range=(-1.0 / (1.0 - section.discount), 0.0),
        clip_targets=section.clip_targets,
    )
    if isinstance(section, RLPDSection):
        from align.learners.rlpd import RLPDConfig, RLPDLearner

        return RLPDLearner(
            policy,
            RLPDConfig(common, target_subset=section.subset, actor_every=section.critic_updates),
            publisher,
        )
    from align.learners.calql import CalQLConfig, CalQLLearner

    return CalQLLearner(
        policy,
        CalQLConfig(
            common,
            alpha=section.alpha,
            alpha_online=section.alpha_online,
            calibrate=section.type == "calql",
            n_actions=section.actions,
            max_target_backup=section.max_target_backup,
        ),
        publisher,
    )


def save_policy(learner: "BCLearner | CalQLLearner | RLPDLearner", folder: str) -> None:
    """Writes the learner's policy to ``folder``, whole or absent; :class:`GaussianPolicy` reads it."""
    learner.actor.published.save(Path(folder))
