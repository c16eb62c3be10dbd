"""Behaviour cloning: the baseline without reinforcement."""

from typing import Any, final

from align.learners.actor import ActorConfig, ActorTrainer, Publisher
from align.types import TransitionBatch
from rollouts.policies.gaussian import GaussianPolicy
from rollouts.types import WeightUpdate


@final
class BCLearner:
    """Imitates the transitions worth imitating; implements :class:`align.protocols.Learner`."""

    def __init__(self, policy: GaussianPolicy, config: ActorConfig, publisher: Publisher) -> None:
        self.actor = ActorTrainer(policy, config, publisher)

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        return self.actor.imitate(batch)

    def weights(self) -> WeightUpdate:
        return self.actor.publish()

    def close(self) -> None:
        self.actor.close()

    def state_dict(self) -> dict[str, Any]:
        return self.actor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.actor.load_state_dict(state)
