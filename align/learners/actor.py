"""A robot's policy in training: what every learner of one needs, critics or not.

Letters: ``B`` transitions, ``A`` dimensions of an action, ``F`` features.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from align.losses.actor import BCScaling, imitation_squared, masked_mean
from align.losses.augment import random_shift
from align.nets.critics import polyak
from align.types import TransitionBatch
from rollouts.envs.types import IMAGE
from rollouts.policies.gaussian import GaussianPolicy, log_density
from rollouts.types import WeightUpdate


class LearnerError(ValueError):
    """A learner's settings cannot be; the message is one line that says what to do."""


class Publisher(Protocol):
    """Where weights are put for actors to find (:class:`cluster.weights.WeightStore`)."""

    def publish(self, tensors: Mapping[str, Tensor], version: int) -> str:
        """Stores named tensors under a version and returns their URI."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BCConfig:
    """How demonstrations are imitated beside reinforcement learning, and before it.

    ``scaling`` and ``weight``: :func:`align.losses.actor.imitation_weight`; ``floor`` is its least size of the
    imitation loss. ``form``: minus the log-density of the demonstrated action, which also learns how sure to be, or the
    squared distance of the actor's mode from it. The first ``warm_start`` updates imitate and do nothing else.
    """

    scaling: BCScaling = "none"
    weight: float = 1.0
    form: Literal["log_likelihood", "squared"] = "log_likelihood"
    floor: float = 0.1
    warm_start: int = 0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.floor <= 0 or self.warm_start < 0:
            raise LearnerError(
                "a BC term needs a weight of at least 0, a floor above 0 and a warm start of at least 0, "
                f"got {self.weight}, {self.floor} and {self.warm_start}"
            )


@dataclass(frozen=True, slots=True)
class ActorConfig:
    """Optimisation of the actor, and of the encoder where there are images.

    ``ema`` makes the policy that is published a running mean of the weights, of which each update keeps that share:
    the trained one wanders around it. 0 publishes the trained one. ``max_grad_norm`` None clips nothing.
    ``augment_pad`` shifts images by up to so many pixels, 0 does not. Metrics are computed at every
    ``metrics_every``-th update.
    """

    lr: float = 1e-4
    encoder_lr: float = 3e-4
    max_grad_norm: float | None = None
    ema: float = 0.0
    augment_pad: int = 4
    bc: BCConfig = field(default_factory=BCConfig)
    metrics_every: int = 10
    seed: int = 0


@final
class ActorTrainer:
    """The policy with its optimisers, the random draws of training, and the versions that are published.

    Learns in the dtype of ``policy``. All draws are from one generator, seeded by the configuration.
    """

    def __init__(self, policy: GaussianPolicy, config: ActorConfig, publisher: Publisher) -> None:
        self.policy = policy.train().requires_grad_(True)
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.parameters = policy.actor_parameters()
        self.encoder_parameters: list[Tensor] = list(policy.encoder.parameters()) if policy.encoder else []
        self.optim = adam(self.parameters, config.lr)
        self.encoder_optim = adam(self.encoder_parameters, config.encoder_lr) if self.encoder_parameters else None
        self.updates = 0
        self.published = deepcopy(policy).requires_grad_(False) if config.ema else policy
        self._publisher = publisher
        self._version = 0
        self._published_at = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.state_mean.dtype

    @property
    def warming_up(self) -> bool:
        """Whether this update still belongs to the warm start."""
        return self.updates < self.config.bc.warm_start

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers of the given shape."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def augment(self, observations: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The observations, images shifted at random."""
        if self.policy.encoder is None or self.config.augment_pad == 0:
            return observations
        return {**observations, IMAGE: random_shift(observations[IMAGE], self.config.augment_pad, self.generator)}

    def imitation(self, mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        """The imitation loss of each sample, [B]."""
        if self.config.bc.form == "squared":
            return imitation_squared(torch.tanh(mean), actions)
        return -log_density(mean, log_std, actions)

    def imitate(self, batch: TransitionBatch) -> dict[str, float]:
        """One update of behaviour cloning on the transitions worth imitating; trains the encoder too.

        A batch without any changes nothing and says so by ``train/imitated`` 0.
        """
        features = self.policy.features(self.augment(batch.observations), batch.instructions)
        mean, log_std = self.policy(features)
        loss = masked_mean(self.imitation(mean, log_std, batch.actions.to(self.dtype)), batch.imitate)
        imitated = float(batch.imitate.float().mean())
        metrics = {"train/imitated": imitated, **self.about(batch)} if self.due() else {}
        if imitated:
            norm = self.backward(loss, [*self.parameters, *self.encoder_parameters], {"train/bc_loss": loss}, batch)
            self.step()
            if metrics:
                metrics |= {"train/bc_loss": float(loss.detach()), "train/actor_grad_norm": norm}
        self.updates += 1
        return metrics

    def backward(
        self, loss: Tensor, parameters: Sequence[Tensor], terms: Mapping[str, Tensor], batch: TransitionBatch
    ) -> float:
        """Gradients of ``loss`` in ``parameters`` alone, clipped; returns their norm before that.

        Raises ``FloatingPointError`` when the norm is not finite, and says which of the named ``terms``, or what in the
        batch, is to blame; no weight has changed then.
        """
        loss.backward(inputs=list(parameters))  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = get_total_norm(gradients)
        norm = float(total)
        if not math.isfinite(norm):
            for p in parameters:
                p.grad = None
            raise FloatingPointError(_blame(terms, batch, self.updates))
        if self.config.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self.config.max_grad_norm, total)
        return norm

    def step(self) -> None:
        """Steps actor and encoder where they have gradients, and forgets these."""
        for optim in (self.optim, self.encoder_optim):
            if optim is not None:
                optim.step()
                optim.zero_grad(set_to_none=True)
        self.follow()

    def follow(self) -> None:
        """Moves the running mean of the weights, where there is one; called after each step of the actor."""
        if self.config.ema:
            polyak(self.published.parameters(), list(self.policy.parameters()), 1.0 - self.config.ema)

    def due(self) -> bool:
        """Whether this update reports metrics."""
        return self.updates % self.config.metrics_every == 0

    def about(self, batch: TransitionBatch) -> dict[str, float]:
        """The realised mix of a batch, and how many published versions behind the robot's own part of it acted."""
        offline = batch.is_offline
        metrics = {"buffer/offline_fraction": float(offline.float().mean())}
        if not bool(offline.all()):
            metrics["buffer/staleness"] = self._version - float(batch.policy_versions[~offline].double().mean())
        return metrics

    def publish(self) -> WeightUpdate:
        """Publishes the policy's weights; the version counts published changes."""
        if self.updates != self._published_at:
            self._version += 1
        tensors = {name: tensor.detach() for name, tensor in self.published.state_dict().items()}
        uri = self._publisher.publish(tensors, self._version)
        self._published_at = self.updates
        return WeightUpdate(self._version, uri)

    def close(self) -> None:
        """Takes back the published weights."""
        self._publisher.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "published": self.published.state_dict() if self.config.ema else {},
            "optim": self.optim.state_dict(),
            "encoder_optim": self.encoder_optim.state_dict() if self.encoder_optim else {},
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "version": self._version,
            "published_at": self._published_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.config.ema:
            self.published.load_state_dict(state["published"])
        self.optim.load_state_dict(state["optim"])
        if self.encoder_optim:
            self.encoder_optim.load_state_dict(state["encoder_optim"])
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
        self._version, self._published_at = state["version"], state["published_at"]


def adam(parameters: Sequence[Tensor], lr: float) -> torch.optim.Adam:
    """Adam as all the reference codes have it: betas 0.9 and 0.999, no weight decay; one kernel for all parameters."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _blame(terms: Mapping[str, Tensor], batch: TransitionBatch, update: int) -> str:
    """One line about what is not finite: data before losses, losses before gradients."""
    data = {
        **{f"observation {key!r}": value for key, value in batch.observations.items()},
        **{f"next observation {key!r}": value for key, value in batch.next_observations.items()},
        "action": batch.actions,
        "reward": batch.rewards,
        "discount": batch.discounts,
        "Monte-Carlo return": batch.mc_returns,
    }
    for name, values in data.items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            return f"update {update}: a {name} in the batch is not finite; look at what was collected or labelled"
    for name, values in terms.items():
        if not bool(torch.isfinite(values).all()):
            return f"update {update}: {name} is not finite; the weights are as they were before"
    return f"update {update}: the gradient is not finite, though {', '.join(terms)} are; clip it or lower the rate"
