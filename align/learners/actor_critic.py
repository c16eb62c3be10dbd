"""What Cal-QL and RLPD share: critics and their targets beside an actor, and the actor's objective.

Letters: ``E`` critics, ``B`` transitions, ``A`` dimensions of an action, ``F`` features.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from align.learners.actor import ActorConfig, ActorTrainer, LearnerError, Publisher, adam
from align.losses.actor import actor_loss, imitation_weight, masked_mean, temperature_loss
from align.losses.actor_critic import outside
from align.nets.critics import CriticEnsemble, polyak
from align.types import TransitionBatch
from rollouts.policies.gaussian import GaussianPolicy, squash


@dataclass(frozen=True, slots=True)
class ActorCriticConfig:
    """Critics, their targets, and the entropy.

    ``target_entropy`` None is the algorithm's own. ``value_range`` is what returns can be, lowest and highest, for a
    reward of -1 a step ``(-1 / (1 - gamma), 0)``: values beyond it are counted, and with ``clip_targets`` no backup
    leaves it, which is in none of the papers. After the BC warm start the critics learn alone for
    ``critic_warm_start`` updates: what a fresh critic says is noise, and an actor that imitates has much to lose.
    ``encoder_lr`` is the rate at which they train the encoder of images; 0 leaves it as imitation has taught it, so
    that an actor's features do not move under it.
    """

    actor: ActorConfig = field(default_factory=ActorConfig)
    ensemble: int = 2
    hidden: tuple[int, ...] = (128, 128)
    layer_norm: bool = True
    critic_lr: float = 3e-4
    encoder_lr: float = 3e-4
    tau: float = 5e-3
    initial_temperature: float = 1.0
    temperature_lr: float = 1e-4
    tune_temperature: bool = True
    target_entropy: float | None = None
    backup_entropy: bool = False
    value_range: tuple[float, float] | None = None
    clip_targets: bool = False
    critic_warm_start: int = 0

    def __post_init__(self) -> None:
        if self.initial_temperature <= 0:
            raise LearnerError(f"initial_temperature must be above 0, got {self.initial_temperature}")
        if self.clip_targets and self.value_range is None:
            raise LearnerError("clip_targets needs a value_range to clip to")
        if self.encoder_lr < 0:
            raise LearnerError(f"encoder_lr must be at least 0, got {self.encoder_lr}")
        if self.ensemble < 1 or not self.hidden:
            raise LearnerError(f"critics need members and hidden layers, got {self.ensemble} and {self.hidden}")


class Encoded(NamedTuple):
    """A batch as the networks see it, [B, F] each.

    ``features`` carry the encoder's gradient; ``next_features`` are for the actor at the next observation and
    ``target_features`` for the target critics there, and carry none.
    """

    features: Tensor
    next_features: Tensor
    target_features: Tensor


class ActorObjective(NamedTuple):
    """``loss`` is what the actor minimises, ``temperature_loss`` what the temperature does; the rest is for metrics."""

    loss: Tensor
    temperature_loss: Tensor
    q: Tensor
    logps: Tensor
    bc: Tensor
    bc_weight: Tensor | float


@final
class ActorCritic:
    """An actor, an ensemble of critics with slow copies, a temperature, and their optimisers.

    The encoder of images is trained by the critics' loss alone, as in RoboFuME and DrQ: the actor sees its features
    and sends no gradient back. The target critics have a slow copy of it.
    """

    def __init__(
        self, policy: GaussianPolicy, config: ActorCriticConfig, publisher: Publisher, *, target_entropy: float
    ) -> None:
        self.config = config
        self.actor = ActorTrainer(policy, config.actor, publisher)
        self.policy = policy
        self.target_entropy = config.target_entropy if config.target_entropy is not None else target_entropy
        self.critics = CriticEnsemble(
            policy.feature_size,
            policy.config.action_size,
            members=config.ensemble,
            hidden=config.hidden,
            normalise=config.layer_norm,
            seed=config.actor.seed,
        ).to(self.actor.dtype)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.target_encoder = deepcopy(policy.encoder).requires_grad_(False) if policy.encoder is not None else None
        self.log_temperature = torch.tensor(
            math.log(config.initial_temperature), dtype=self.actor.dtype, requires_grad=config.tune_temperature
        )
        self.critic_parameters: list[Tensor] = list(self.critics.parameters())
        self.optim = adam(self.critic_parameters, config.critic_lr)
        self.temperature_optim = adam([self.log_temperature], config.temperature_lr)

    @property
    def temperature(self) -> Tensor:
        """The weight of the entropy, a constant to every gradient."""
        return self.log_temperature.detach().exp()

    @property
    def actor_waits(self) -> bool:
        """Whether the critics learn alone in this update."""
        return self.actor.updates < self.config.actor.bc.warm_start + self.config.critic_warm_start

    @property
    def trains_encoder(self) -> bool:
        """Whether the critics' gradients reach an encoder."""
        return bool(self.actor.encoder_parameters) and self.config.encoder_lr > 0

    def encode(self, batch: TransitionBatch) -> Encoded:
        """The batch's features; images are shifted at random, once for each observation."""
        policy = self.policy
        with torch.set_grad_enabled(self.trains_encoder):
            features = policy.features(self.actor.augment(batch.observations), batch.instructions)
        with torch.no_grad():
            following = self.actor.augment(batch.next_observations)
            next_features = policy.features(following, batch.instructions)
            if self.target_encoder is None:
                return Encoded(features, next_features, next_features)
            return Encoded(features, next_features, policy.features(following, batch.instructions, self.target_encoder))

    def actor_objective(
        self, batch: TransitionBatch, features: Tensor, noise: Tensor, *, reduction: Literal["min", "mean"]
    ) -> ActorObjective:
        """Entropy-regularised value of the actor's own actions, and the imitation of demonstrations beside it.

        ``features`` [B, F] without gradient, ``noise`` [B, A] standard normal.
        """
        mean, log_std = self.policy(features)
        actions, logps = squash(mean, log_std, noise)
        q = self.critics(features, actions.unsqueeze(1)).squeeze(-1)
        rl = actor_loss(q, logps, self.temperature, reduction=reduction)
        settings = self.config.actor.bc
        loss, bc_mean = rl.mean(), torch.zeros(())
        weight: Tensor | float = 0.0
        if settings.scaling != "none":
            bc = self.actor.imitation(mean, log_std, batch.actions.to(self.actor.dtype))
            bc_mean = masked_mean(bc, batch.imitate)
            weight = imitation_weight(
                rl, bc, q, batch.imitate, scaling=settings.scaling, weight=settings.weight, floor=settings.floor
            )
            loss = loss + weight * bc_mean
        return ActorObjective(
            loss, temperature_loss(self.log_temperature, logps, self.target_entropy), q, logps, bc_mean, weight
        )

    def clip(self, targets: Tensor) -> Tensor:
        """Backups within the range of returns, where the configuration asks for it."""
        if self.config.clip_targets and self.config.value_range is not None:
            return targets.clamp(*self.config.value_range)
        return targets

    def critic_backward(self, loss: Tensor, terms: dict[str, Tensor], batch: TransitionBatch) -> float:
        """Gradients of the critics and of the encoder; returns their norm."""
        encoder = self.actor.encoder_parameters if self.trains_encoder else []
        return self.actor.backward(loss, [*self.critic_parameters, *encoder], terms, batch)

    def actor_backward(self, objective: ActorObjective, batch: TransitionBatch) -> float:
        """Gradients of the actor and of the temperature; returns the actor's norm."""
        terms = {"Q of the actor's actions": objective.q, "log pi": objective.logps, "train/bc_loss": objective.bc}
        norm = self.actor.backward(objective.loss, self.actor.parameters, terms, batch)
        if self.config.tune_temperature:
            objective.temperature_loss.backward()  # type: ignore[no-untyped-call]
        return norm

    def step_critics(self) -> None:
        """Steps critics and encoder, then moves their slow copies."""
        self.optim.step()
        self.optim.zero_grad(set_to_none=True)
        tau = self.config.tau
        if self.trains_encoder and self.actor.encoder_optim is not None and self.target_encoder is not None:
            for group in self.actor.encoder_optim.param_groups:
                group["lr"] = self.config.encoder_lr
            self.actor.encoder_optim.step()
            self.actor.encoder_optim.zero_grad(set_to_none=True)
            polyak(self.target_encoder.parameters(), self.actor.encoder_parameters, tau)
        polyak(self.target_critics.parameters(), self.critic_parameters, tau)

    def step_actor(self) -> None:
        """Steps the actor and the temperature."""
        self.actor.optim.step()
        self.actor.optim.zero_grad(set_to_none=True)
        self.actor.follow()
        if self.config.tune_temperature:
            self.temperature_optim.step()
            self.temperature_optim.zero_grad(set_to_none=True)

    def imitate(self, batch: TransitionBatch) -> dict[str, float]:
        """An update of the warm start: the actor alone, and the encoder with it, whose slow copy follows at once."""
        metrics = self.actor.imitate(batch)
        if self.target_encoder is not None:
            polyak(self.target_encoder.parameters(), self.actor.encoder_parameters, 1.0)
        return metrics

    def actor_metrics(self, objective: ActorObjective, norm: float) -> dict[str, float]:
        metrics = {
            "train/actor_loss": float(objective.loss.detach()),
            "train/actor_grad_norm": norm,
            "train/q_policy": float(objective.q.detach().mean()),
            "train/entropy": -float(objective.logps.detach().mean()),
            "train/temperature": float(self.temperature),
        }
        if self.config.value_range is not None:
            metrics["train/q_policy_outside"] = float(outside(objective.q.detach(), *self.config.value_range))
        if self.config.actor.bc.scaling != "none":
            metrics |= {"train/bc_loss": float(objective.bc.detach()), "train/bc_weight": float(objective.bc_weight)}
        return metrics

    def critic_metrics(self, batch: TransitionBatch, td: Tensor, q_data: Tensor, norm: float) -> dict[str, float]:
        metrics = {
            "train/td_loss": float(td.detach().mean()),
            "train/q_data": float(q_data.detach().mean()),
            "train/mc_return": float(batch.mc_returns.mean()),
            "train/critic_grad_norm": norm,
            **self.actor.about(batch),
        }
        if self.config.value_range is not None:
            metrics["train/q_outside"] = float(outside(q_data.detach(), *self.config.value_range))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor": self.actor.state_dict(),
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "target_encoder": self.target_encoder.state_dict() if self.target_encoder is not None else {},
            "log_temperature": self.log_temperature.detach(),
            "optim": self.optim.state_dict(),
            "temperature_optim": self.temperature_optim.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.target_critics.load_state_dict(state["target_critics"])
        if self.target_encoder is not None:
            self.target_encoder.load_state_dict(state["target_encoder"])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.optim.load_state_dict(state["optim"])
        self.temperature_optim.load_state_dict(state["temperature_optim"])
