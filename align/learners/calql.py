"""Cal-QL: conservative Q-learning whose values are not pushed below what the behaviour got; and CQL.

Letters: ``E`` critics, ``B`` transitions, ``N`` actions drawn for each state, ``A`` dimensions of an action.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from align.learners.actor import LearnerError, Publisher, adam
from align.learners.actor_critic import ActorCritic, ActorCriticConfig, Encoded
from align.losses.actor_critic import (
    ConservativeGap,
    conservative_gap,
    lagrange_loss,
    lagrange_multiplier,
    td_loss,
    td_target,
)
from align.types import TransitionBatch
from rollouts.policies.gaussian import GaussianPolicy, squash
from rollouts.types import WeightUpdate


@dataclass(frozen=True, slots=True)
class CalQLConfig:
    """Cal-QL's own settings; the defaults are the authors' code's, but for ``n_actions`` 10 there.

    ``alpha`` weighs the conservative term against the squared error without its factor 1/2, so that it is twice the
    paper's; ``alpha_online`` takes its place in batches with online data, None keeps it. ``calibrate`` False is CQL.
    With ``target_gap`` the term also carries a learned multiplier (CQL's Lagrange form). ``max_target_backup`` backs up
    the best of ``n_actions`` next actions.
    """

    common: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    alpha: float = 5.0
    alpha_online: float | None = None
    calibrate: bool = True
    n_actions: int = 4
    target_gap: float | None = None
    max_target_backup: bool = True
    importance_sampling: bool = True
    cql_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.n_actions < 1 or self.alpha < 0 or self.cql_temperature <= 0:
            raise LearnerError(
                "Cal-QL needs n_actions of at least 1, alpha of at least 0 and cql_temperature above 0, "
                f"got {self.n_actions}, {self.alpha} and {self.cql_temperature}"
            )


class Draws(NamedTuple):
    """All that is random in one update: uniform ``random`` actions in [-1, 1], the rest standard normal.

    ``random``, ``policy`` (at s) and ``following`` (at s') are [B, N, A], ``backup`` (at s', for the target) [B, N, A]
    or [B, 1, A], ``actor`` [B, A].
    """

    random: Tensor
    policy: Tensor
    following: Tensor
    backup: Tensor
    actor: Tensor


class CriticObjective(NamedTuple):
    """``loss`` is what all critics minimise together: the sum over them of each one's mean; the rest are its terms."""

    loss: Tensor
    td: Tensor
    conservative: Tensor
    gap: ConservativeGap
    q_data: Tensor


@final
class CalQLLearner:
    """Trains actor and critics on batches of transitions; implements :class:`align.protocols.Learner`.

    One update computes the gradients of critics, multiplier, actor and temperature at the same weights, as the authors'
    code does, and then steps them all. Calibration is the same offline and online. Equations:
    :mod:`align.losses.actor_critic`; where public code deviates: ``align/learners/CALQL.md``.
    """

    def __init__(self, policy: GaussianPolicy, config: CalQLConfig, publisher: Publisher) -> None:
        self.config = config
        self.core = ActorCritic(policy, config.common, publisher, target_entropy=-float(policy.config.action_size))
        self.actor = self.core.actor
        self.log_multiplier = torch.ones((), dtype=self.actor.dtype, requires_grad=True)
        self._multiplier_optim = adam([self.log_multiplier], config.common.critic_lr)

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One update of everything, or one of the warm start. Raises ``FloatingPointError`` when something diverged."""
        core, actor = self.core, self.actor
        if actor.warming_up:
            return core.imitate(batch)
        encoded, draws = core.encode(batch), self.draw(len(batch))
        critic = self.critic_objective(batch, encoded, draws)
        objective = None
        if not core.actor_waits:
            objective = core.actor_objective(batch, encoded.features.detach(), draws.actor, reduction="min")
        terms = {"train/td_loss": critic.td, "train/conservative_loss": critic.conservative}
        norm = core.critic_backward(critic.loss, terms, batch)
        metrics = self._metrics(batch, critic, norm) if actor.due() else {}
        if objective is not None:
            norm = core.actor_backward(objective, batch)
            if metrics:
                metrics |= core.actor_metrics(objective, norm)
        if self.config.target_gap is not None:
            self._step_multiplier(critic.gap.gap, self.config.target_gap, self._alpha(batch))
        core.step_critics()
        if objective is not None:
            core.step_actor()
        actor.updates += 1
        return metrics

    def draw(self, size: int) -> Draws:
        """The random numbers of an update of ``size`` transitions."""
        n, dimensions, actor = self.config.n_actions, self.core.policy.config.action_size, self.actor
        uniform = torch.rand((size, n, dimensions), generator=actor.generator, dtype=actor.dtype)
        backups = n if self.config.max_target_backup else 1
        normal = actor.noise(size, 2 * n + backups + 1, dimensions)
        policy, following, backup, own = torch.split(normal, [n, n, backups, 1], dim=1)
        return Draws(2 * uniform - 1, policy, following, backup, own.squeeze(1))

    def critic_objective(self, batch: TransitionBatch, encoded: Encoded, draws: Draws) -> CriticObjective:
        """The critics' loss on a batch, with the gradients of critics and encoder."""
        config, core = self.config, self.core
        dtype, n = core.actor.dtype, config.n_actions
        rewards, discounts = batch.rewards.to(dtype), batch.discounts.to(dtype)
        with torch.no_grad():
            mean, log_std = (x.unsqueeze(1) for x in core.policy(encoded.features))
            next_mean, next_log_std = (x.unsqueeze(1) for x in core.policy(encoded.next_features))
            policy, policy_logps = squash(mean, log_std, draws.policy)
            following, following_logps = squash(next_mean, next_log_std, draws.following)
            backup, backup_logps = squash(next_mean, next_log_std, draws.backup)
            next_q = core.target_critics(encoded.target_features, backup)
            entropy = backup_logps if config.common.backup_entropy else None
            target = core.clip(td_target(rewards, discounts, next_q, entropy, core.temperature))
        actions = torch.cat([batch.actions.to(dtype).unsqueeze(1), draws.random, policy, following], dim=1)
        q_data, q_random, q_policy = torch.split(core.critics(encoded.features, actions), [1, n, 2 * n], dim=-1)
        q_data = q_data.squeeze(-1)
        gap = conservative_gap(
            q_data,
            q_random,
            q_policy,
            torch.cat([policy_logps, following_logps], dim=-1),
            action_size=core.policy.config.action_size,
            mc_returns=batch.mc_returns.to(dtype) if config.calibrate else None,
            temperature=config.cql_temperature,
            importance_sampling=config.importance_sampling,
        )
        weight: float | Tensor = self._alpha(batch)
        if config.target_gap is not None:
            weight = weight * lagrange_multiplier(self.log_multiplier.detach())
        td, conservative = td_loss(q_data, target), weight * gap.gap
        return CriticObjective((td + conservative).mean(-1).sum(), td, conservative, gap, q_data)

    def weights(self) -> WeightUpdate:
        return self.actor.publish()

    def close(self) -> None:
        self.actor.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "core": self.core.state_dict(),
            "log_multiplier": self.log_multiplier.detach(),
            "multiplier_optim": self._multiplier_optim.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.core.load_state_dict(state["core"])
        with torch.no_grad():
            self.log_multiplier.copy_(state["log_multiplier"])
        self._multiplier_optim.load_state_dict(state["multiplier_optim"])

    def _metrics(self, batch: TransitionBatch, critic: CriticObjective, norm: float) -> dict[str, float]:
        metrics = self.core.critic_metrics(batch, critic.td, critic.q_data, norm)
        metrics |= {
            "train/critic_loss": float(critic.loss.detach()) / self.core.critics.members,
            "train/conservative_loss": float(critic.conservative.detach().mean()),
            "train/conservative_gap": float(critic.gap.gap.detach().mean()),
        }
        if self.config.calibrate:
            metrics["train/calibration_rate"] = float(critic.gap.calibrated)
        if self.config.target_gap is not None:
            metrics["train/multiplier"] = float(lagrange_multiplier(self.log_multiplier.detach()))
        return metrics

    def _alpha(self, batch: TransitionBatch) -> float:
        online = self.config.alpha_online
        return self.config.alpha if online is None or bool(batch.is_offline.all()) else online

    def _step_multiplier(self, gap: Tensor, target_gap: float, alpha: float) -> None:
        loss = lagrange_loss(self.log_multiplier, gap, target_gap=target_gap, alpha=alpha)
        loss.backward()  # type: ignore[no-untyped-call]
        self._multiplier_optim.step()
        self._multiplier_optim.zero_grad(set_to_none=True)
