"""The published policy as a running mean of the trained one's weights."""

from pathlib import Path

import torch

from align.learners.actor import ActorConfig
from align.learners.bc import BCLearner
from rollouts.policies.gaussian import GaussianPolicy
from tests.align.learners.robots import Folder, batch, policy


def weights(network: GaussianPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_mean_follows_by_its_share(tmp_path: Path) -> None:
    learner = BCLearner(policy(), ActorConfig(lr=1e-2, ema=0.75), Folder(tmp_path))
    mean = weights(learner.actor.published)
    for seed in range(3):
        learner.update(batch(seed))
        mean = 0.75 * mean + 0.25 * weights(learner.actor.policy)
        torch.testing.assert_close(weights(learner.actor.published), mean)
    assert not torch.equal(mean, weights(learner.actor.policy))
    other = policy(1)
    other.load_weights(Path(learner.weights().uri.removeprefix("file:")))
    torch.testing.assert_close(weights(other), mean)


def test_it_continues_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> BCLearner:
        return BCLearner(policy(), ActorConfig(lr=1e-2, ema=0.9), Folder(tmp_path))

    whole, first, second = fresh(), fresh(), fresh()
    for seed in range(4):
        whole.update(batch(seed))
    for seed in range(2):
        first.update(batch(seed))
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        second.update(batch(seed))
    assert torch.equal(weights(second.actor.published), weights(whole.actor.published))


def test_without_it_the_trained_policy_is_published(tmp_path: Path) -> None:
    learner = BCLearner(policy(), ActorConfig(), Folder(tmp_path))
    assert learner.actor.published is learner.actor.policy
