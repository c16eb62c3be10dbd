"""RLPD: soft actor-critic with a LayerNorm ensemble and many updates a step, from prior and own data together."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from align.learners.actor import ActorConfig, LearnerError, Publisher
from align.learners.actor_critic import ActorCritic, ActorCriticConfig, Encoded
from align.losses.actor_critic import random_subset, td_loss, td_target
from align.types import TransitionBatch
from rollouts.policies.gaussian import GaussianPolicy, squash
from rollouts.types import WeightUpdate


def _paper() -> ActorCriticConfig:
    return ActorCriticConfig(actor=ActorConfig(lr=3e-4), ensemble=10, temperature_lr=3e-4)


@dataclass(frozen=True, slots=True)
class RLPDConfig:
    """RLPD's own settings; the defaults are the paper's for sparse rewards, but for the size of the networks.

    A backup takes the minimum over ``target_subset`` random critics of the ensemble. The actor and the temperature are
    updated once for every ``actor_every`` updates of the critics: the paper's update-to-data ratio of 20 has 20 here.
    The ratio itself is the mixer's.
    """

    common: ActorCriticConfig = field(default_factory=_paper)
    target_subset: int = 2
    actor_every: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.target_subset <= self.common.ensemble or self.actor_every < 1:
            raise LearnerError(
                f"target_subset must be from 1 to the ensemble's {self.common.ensemble} and actor_every at least 1, "
                f"got {self.target_subset} and {self.actor_every}"
            )


class CriticObjective(NamedTuple):
    """``loss`` is what all critics minimise together: the sum over them of each one's mean squared error."""

    loss: Tensor
    td: Tensor
    q_data: Tensor


@final
class RLPDLearner:
    """Trains actor and critics on batches of transitions; implements :class:`align.protocols.Learner`.

    Source: Ball et al., "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948, algorithm 1, and
    its code (github.com/ikostrikov/rlpd): critics step first, then the actor on the new critics' mean. Its loss is the
    mean over the ensemble and this one the sum, which Adam does not tell apart.
    """

    def __init__(self, policy: GaussianPolicy, config: RLPDConfig, publisher: Publisher) -> None:
        self.config = config
        self.core = ActorCritic(policy, config.common, publisher, target_entropy=-policy.config.action_size / 2)
        self.actor = self.core.actor

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One update of the critics, and of the actor where it is due; or one of the warm start.

        Raises ``FloatingPointError`` when something diverged.
        """
        core, actor = self.core, self.actor
        if actor.warming_up:
            return core.imitate(batch)
        encoded = core.encode(batch)
        critic = self.critic_objective(batch, encoded)
        norm = core.critic_backward(critic.loss, {"train/td_loss": critic.td}, batch)
        core.step_critics()
        metrics: dict[str, float] = {}
        if self._due():
            metrics = core.critic_metrics(batch, critic.td, critic.q_data, norm)
            metrics["train/critic_loss"] = float(critic.loss.detach()) / core.critics.members
        if not core.actor_waits and (actor.updates + 1) % self.config.actor_every == 0:
            noise = actor.noise(len(batch), core.policy.config.action_size)
            objective = core.actor_objective(batch, encoded.features.detach(), noise, reduction="mean")
            norm = core.actor_backward(objective, batch)
            core.step_actor()
            if metrics:
                metrics |= core.actor_metrics(objective, norm)
        actor.updates += 1
        return metrics

    def critic_objective(self, batch: TransitionBatch, encoded: Encoded) -> CriticObjective:
        """The critics' loss on a batch, with the gradients of critics and encoder; draws noise and a subset."""
        core, config = self.core, self.config
        dtype = core.actor.dtype
        with torch.no_grad():
            mean, log_std = core.policy(encoded.next_features)
            actions, logps = squash(mean, log_std, core.actor.noise(*mean.shape))
            ensemble = core.critics.members
            members = None
            if config.target_subset < ensemble:
                members = random_subset(ensemble, config.target_subset, core.actor.generator)
            next_q = core.target_critics(encoded.target_features, actions.unsqueeze(1), members)
            entropy = logps.unsqueeze(-1) if config.common.backup_entropy else None
            rewards, discounts = batch.rewards.to(dtype), batch.discounts.to(dtype)
            target = core.clip(td_target(rewards, discounts, next_q, entropy, core.temperature))
        q_data = core.critics(encoded.features, batch.actions.to(dtype).unsqueeze(1)).squeeze(-1)
        td = td_loss(q_data, target)
        return CriticObjective(td.mean(-1).sum(), td, q_data)

    def weights(self) -> WeightUpdate:
        return self.actor.publish()

    def close(self) -> None:
        self.actor.close()

    def state_dict(self) -> dict[str, Any]:
        return self.core.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.core.load_state_dict(state)

    def _due(self) -> bool:
        """Whether this update reports: about every ``metrics_every``-th, when the actor is updated too."""
        every = self.config.actor_every
        period = max(1, round(self.config.common.actor.metrics_every / every)) * every
        return (self.actor.updates + 1) % period == 0
