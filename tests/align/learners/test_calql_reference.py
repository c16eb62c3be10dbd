"""Peer check: our updates against the published formulas, written out one sample at a time, in double precision.

The reference below knows nothing of the learners' code: it evaluates every network of the batch vector by vector from
its raw weights, takes densities from ``torch.distributions``, and follows the published equations literally.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from align.learners.actor import ActorConfig, BCConfig
from align.learners.actor_critic import ActorCritic, ActorCriticConfig
from align.learners.calql import CalQLConfig, CalQLLearner
from align.learners.rlpd import RLPDConfig, RLPDLearner
from align.types import TransitionBatch
from rollouts.policies.gaussian import GaussianPolicy
from tests.align.learners.robots import ACTIONS, GAMMA, Folder, batch, policy

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def double(values: TransitionBatch) -> TransitionBatch:
    # Discounts in single precision are not 0.9; both sides must read the same number.
    return replace(values, discounts=torch.where(values.discounts > 0, GAMMA, 0.0).double())


class Reference:
    """One robot's networks, evaluated one vector at a time."""

    def __init__(self, core: ActorCritic, values: TransitionBatch) -> None:
        self.core = core
        self.policy: GaussianPolicy = core.policy
        self.batch = values
        self.temperature = math.exp(float(core.log_temperature.detach()))

    def feature(self, i: int, following: bool = False) -> Tensor:
        seen = self.batch.next_observations if following else self.batch.observations
        state = (seen["state"][i].double() - self.policy.state_mean) / self.policy.state_std
        return torch.cat([state, self.batch.instructions[i].double()])

    def distribution(self, feature: Tensor) -> tuple[Tensor, Tensor, Any]:
        x = feature
        for layer in self.policy.hidden:
            x = torch.relu(layer.weight @ x + layer.bias)  # type: ignore[operator]
        x = self.policy.output.weight @ x + self.policy.output.bias
        mean, log_std = x[:ACTIONS], torch.clamp(x[ACTIONS:] - 1.0, -5.0, 2.0)
        base = Independent(Normal(mean, log_std.exp()), 1)
        return mean, log_std.exp(), TransformedDistribution(base, TanhTransform(cache_size=1))

    def sample(self, feature: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, std, distribution = self.distribution(feature)
        action = distribution.transforms[0](mean + std * noise)
        return action, distribution.log_prob(action)

    def q(self, critics: Any, member: int, feature: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([feature, action])
        first = torch.cat([critics.on_features[member], critics.on_actions[member]])
        for weight, bias in zip([first, *(w[member] for w in critics.weights)], critics.biases, strict=True):
            x = x @ weight + bias[member, 0]
            x = torch.relu((x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5))
        value: Tensor = (x @ critics.output[member] + critics.output_bias[member, 0])[0]
        return value

    def target(self, i: int, noises: Tensor, members: list[int], entropy: bool) -> Tensor:
        """``r + gamma max_a min_e Q'(s', a)``, minus the entropy of that action where it is backed up."""
        best, best_logp = None, None
        for noise in noises:
            action, logp = self.sample(self.feature(i, following=True), noise)
            worst = min(self.q(self.core.target_critics, e, self.feature(i, following=True), action) for e in members)
            if best is None or worst > best:
                best, best_logp = worst, logp
        assert best is not None and best_logp is not None
        if entropy:
            best = best - self.temperature * best_logp
        return (self.batch.rewards[i].double() + self.batch.discounts[i].double() * best).detach()

    def critic_loss(self, config: CalQLConfig, draws: Any, multiplier: float) -> Tensor:
        """Sum over the critics of the mean of ``(Q - target)^2 + alpha (logsumexp(max(Q, V) - log pi) - Q)``."""
        count, critics = len(self.batch), self.core.critics
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(count):
            feature = self.feature(i)
            data = self.batch.actions[i].double()
            members = list(range(critics.members))
            target = self.target(i, draws.backup[i], members, config.common.backup_entropy)
            for e in members:
                q_data = self.q(critics, e, feature, data)
                terms = []
                for action in draws.random[i]:
                    terms.append(self.q(critics, e, feature, action) - math.log(0.5**ACTIONS))
                for noises, following in ((draws.policy[i], False), (draws.following[i], True)):
                    for noise in noises:
                        action, logp = self.sample(self.feature(i, following), noise)
                        q = self.q(critics, e, feature, action.detach())
                        if config.calibrate:
                            q = torch.maximum(q, self.batch.mc_returns[i].double())
                        terms.append(q - logp.detach())
                total = sum(torch.exp(term / config.cql_temperature) for term in terms)
                conservative = config.cql_temperature * torch.log(torch.as_tensor(total)) - q_data
                loss = loss + ((q_data - target) ** 2 + multiplier * config.alpha * conservative) / count
        return loss

    def actor_losses(self, noises: Tensor, reduce: Callable[[list[Tensor]], Tensor], bc: BCConfig) -> list[Tensor]:
        """The actor's loss, then the temperature's, from ``temperature log pi - Q`` and the demonstrations."""
        count = len(self.batch)
        objective, logps, clones, values = [], [], [], []
        for i in range(count):
            feature = self.feature(i)
            action, logp = self.sample(feature, noises[i])
            q = [self.q(self.core.critics, e, feature, action) for e in range(self.core.critics.members)]
            objective.append(self.temperature * logp - reduce(q))
            logps.append(logp)
            values += q
            if bool(self.batch.imitate[i]):
                _, _, distribution = self.distribution(feature)
                clones.append(-distribution.log_prob(self.batch.actions[i].double()))
        loss = sum(objective, torch.zeros((), dtype=torch.float64)) / count
        if bc.scaling != "none":
            imitation = sum(clones, torch.zeros((), dtype=torch.float64)) / len(clones)
            ratio = bc.weight * sum(abs(x.item()) for x in objective) / count
            loss = loss + ratio / max(sum(abs(x.item()) for x in clones) / len(clones), bc.floor) * imitation
        mean_logp = sum(x.item() for x in logps) / count
        return [loss, -self.core.log_temperature * (mean_logp + self.core.target_entropy)]


def same_gradients(ours: Tensor, theirs: Tensor, parameters: list[Any]) -> None:
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    pairs = zip(
        torch.autograd.grad(ours, parameters, retain_graph=True),
        torch.autograd.grad(theirs, parameters, retain_graph=True),
        strict=True,
    )
    for own, other in pairs:
        torch.testing.assert_close(own, other, **TOLERANCE)
        assert own.abs().max() > 0


def common(bc: BCConfig, **changes: Any) -> ActorCriticConfig:
    settings: dict[str, Any] = {"hidden": (7, 6), "initial_temperature": 0.3, "actor": ActorConfig(bc=bc, seed=3)}
    return ActorCriticConfig(**(settings | changes))


PLAIN, RATIO = BCConfig(), BCConfig(scaling="loss_ratio", weight=0.7)

CASES = {
    "cal-ql": CalQLConfig(common=common(PLAIN), n_actions=3),
    "cql": CalQLConfig(common=common(PLAIN), n_actions=3, calibrate=False),
    "cal-ql, one backup, entropy": CalQLConfig(
        common=common(PLAIN, backup_entropy=True), n_actions=2, max_target_backup=False
    ),
    "cal-ql, entropy of the best": CalQLConfig(common=common(PLAIN, backup_entropy=True), n_actions=3),
    "cal-ql, lagrange": CalQLConfig(common=common(PLAIN), n_actions=2, target_gap=0.8),
    "cal-ql, three critics, temperature, imitation": CalQLConfig(
        common=common(RATIO, ensemble=3), n_actions=2, cql_temperature=1.7, alpha=0.4
    ),
}


def calql(config: CalQLConfig, folder: Path) -> CalQLLearner:
    network = policy(1).double()
    network.set_normalisation(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0]))
    learner = CalQLLearner(network, config, Folder(folder))
    shake(learner.core)
    return learner


def shake(core: ActorCritic) -> None:
    """Away from the tidy start: values between -8 and 0, so that the bound is above some of them, and not all."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in (core.critics, core.target_critics):
            for name, parameter in module.named_parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
                if name == "output_bias":
                    parameter.sub_(4)
        core.policy.output.weight.mul_(30)


@pytest.mark.parametrize("name", CASES)
def test_cal_ql_is_the_published_formula(name: str, tmp_path: Path) -> None:
    config, values = CASES[name], double(batch(5, size=5))
    learner = calql(config, tmp_path)
    core = learner.core
    reference = Reference(core, values)
    draws = learner.draw(len(values))
    encoded = core.encode(values)
    ours = learner.critic_objective(values, encoded, draws)
    multiplier = math.e if config.target_gap is not None else 1.0
    same_gradients(ours.loss, reference.critic_loss(config, draws, multiplier), core.critic_parameters)
    if config.calibrate:
        assert 0 < float(ours.gap.calibrated) < 1
    objective = core.actor_objective(values, encoded.features, draws.actor, reduction="min")
    actor, temperature = reference.actor_losses(draws.actor, lambda q: min(q), config.common.actor.bc)  # type: ignore[type-var]
    same_gradients(objective.loss, actor, core.actor.parameters)
    same_gradients(objective.temperature_loss, temperature, [core.log_temperature])


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("bc", [PLAIN, RATIO])
def test_rlpd_is_the_published_formula(entropy: bool, bc: BCConfig, tmp_path: Path) -> None:
    values = double(batch(6, size=5))
    config = RLPDConfig(common=common(bc, ensemble=4, backup_entropy=entropy), target_subset=2)
    learner = RLPDLearner(policy(2).double(), config, Folder(tmp_path))
    core = learner.core
    shake(core)
    reference = Reference(core, values)
    state = core.actor.generator.get_state()
    ours = learner.critic_objective(values, core.encode(values))
    core.actor.generator.set_state(state)
    noise = core.actor.noise(5, ACTIONS)
    members = torch.randperm(4, generator=core.actor.generator)[:2].tolist()
    theirs = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        target = reference.target(i, noise[i : i + 1], members, entropy)
        for e in range(4):
            q = reference.q(core.critics, e, reference.feature(i), values.actions[i].double())
            theirs = theirs + (q - target) ** 2 / 5
    same_gradients(ours.loss, theirs, core.critic_parameters)
    own = core.actor.noise(5, ACTIONS)
    objective = core.actor_objective(values, core.encode(values).features, own, reduction="mean")
    actor, temperature = reference.actor_losses(own, lambda q: sum(q) / 4, bc)  # type: ignore[arg-type,return-value]
    same_gradients(objective.loss, actor, core.actor.parameters)
    same_gradients(objective.temperature_loss, temperature, [core.log_temperature])


def test_an_update_is_adam_on_these_gradients_and_a_slow_copy(tmp_path: Path) -> None:
    config, values = replace(CASES["cal-ql, lagrange"], target_gap=0.8), double(batch(5, size=5))
    learner = calql(config, tmp_path)
    core = learner.core
    before = {name: tensor.clone() for name, tensor in core.critics.state_dict().items()}
    slow = {name: tensor.clone() for name, tensor in core.target_critics.state_dict().items()}
    weights = [p.detach().clone() for p in core.actor.parameters]
    log_temperature, log_multiplier = core.log_temperature.item(), learner.log_multiplier.item()
    state = core.actor.generator.get_state()
    draws, encoded = learner.draw(len(values)), core.encode(values)
    objective = learner.critic_objective(values, encoded, draws)
    grads = torch.autograd.grad(objective.loss, core.critic_parameters)
    actor = core.actor_objective(values, encoded.features, draws.actor, reduction="min")
    actor_grads = torch.autograd.grad(actor.loss, core.actor.parameters)
    core.actor.generator.set_state(state)
    learner.update(values)

    def stepped(value: Tensor, grad: Tensor, lr: float) -> Tensor:
        # Adam's first step: both moments are the gradient's own, so that only its sign is left.
        return value - lr * grad / (grad.abs() + 1e-8)

    for (name, old), grad in zip(before.items(), grads, strict=True):
        new = core.critics.state_dict()[name]
        torch.testing.assert_close(new, stepped(old, grad, config.common.critic_lr), atol=1e-12, rtol=0)
        expected = 0.995 * slow[name] + 0.005 * new
        torch.testing.assert_close(core.target_critics.state_dict()[name], expected, atol=1e-12, rtol=0)
    for parameter, old, grad in zip(core.actor.parameters, weights, actor_grads, strict=True):
        torch.testing.assert_close(parameter.detach(), stepped(old, grad, 1e-4), atol=1e-12, rtol=0)
    # The gap is wider than 0.8, so the multiplier grows; a fresh actor's entropy is above -2, so the temperature falls.
    assert objective.gap.gap.mean().item() > 0.8
    assert learner.log_multiplier.item() == pytest.approx(log_multiplier + 3e-4, abs=1e-9)
    rises = actor.logps.mean().item() + core.target_entropy > 0
    assert core.log_temperature.item() == pytest.approx(log_temperature + (1e-4 if rises else -1e-4), abs=1e-9)
