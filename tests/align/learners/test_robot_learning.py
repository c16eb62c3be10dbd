"""The whole chain learns: a point on a plane, prior data, batches, updates, published weights, and it gets there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from align.buffers.transition_mixer import TransitionMixConfig, TransitionMixer
from align.buffers.transitions import normalisation
from align.learners.actor import ActorConfig, BCConfig
from align.learners.actor_critic import ActorCriticConfig
from align.learners.calql import CalQLConfig, CalQLLearner
from align.learners.rlpd import RLPDConfig, RLPDLearner
from rewards.success.returns import monte_carlo_returns
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import STATE, Episode, Source, Task
from rollouts.policies.actor import ActorPolicy
from rollouts.policies.config import PolicyConfig
from rollouts.policies.gaussian import GaussianPolicy
from tests.align.learners.robots import Folder

GAMMA, LIMIT = 0.9, 15
TASK = Task("point", "go to the corner")
GOAL, RADIUS, SPEED = np.array([0.7, 0.7]), 0.2, 0.25

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def rollout(act: Act, start: NDArray[np.float64], source: Source, version: int = 0) -> LabelledEpisode:
    """One attempt, cut after ``LIMIT`` steps, with its labels."""
    states, actions, done = [start.astype(np.float32)], [], False
    while not done and len(actions) < LIMIT:
        actions.append(act(states[-1]))
        position = np.clip(states[-1] + SPEED * actions[-1], -1, 1)
        states.append(position.astype(np.float32))
        done = bool(np.linalg.norm(position - GOAL) < RADIUS)
    count = len(actions)
    terminals = np.zeros(count, dtype=bool)
    terminals[-1] = done
    rewards = np.where(terminals, 0, -1).astype(np.float32)
    episode = Episode(
        id="e",
        task=TASK,
        observations={STATE: np.stack(states)},
        actions=np.stack(actions).astype(np.float32),
        rewards=rewards,
        success=terminals,
        detected=np.full(count, np.nan, np.float32),
        terminated=done,
        truncated=not done,
        source=source,
        policy_version=version,
    )
    returns = monte_carlo_returns(rewards, terminals, gamma=GAMMA, failure_reward=-1)
    return LabelledEpisode(episode, rewards, terminals, returns)


def prior(rng: np.random.Generator) -> list[LabelledEpisode]:
    """Five slow, noisy demonstrations and five walks that lead nowhere."""

    def toward(state: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip(0.5 * (GOAL - state) + rng.normal(0, 0.6, 2), -1, 1).astype(np.float32)

    def astray(state: NDArray[np.float32]) -> NDArray[np.float32]:
        return rng.uniform(-1, 1, 2).astype(np.float32)

    found: list[LabelledEpisode] = []
    while len(found) < 5:
        attempt = rollout(toward, rng.uniform(-1, 0.2, 2), Source.DEMONSTRATION)
        found += [attempt] if attempt.terminals[-1] else []
    while len(found) < 10:
        attempt = rollout(astray, rng.uniform(-1, 0.2, 2), Source.FAILURE)
        found += [] if attempt.terminals[-1] else [attempt]
    return found


def steps_needed(network: GaussianPolicy) -> float:
    """Mean length of an attempt from 25 places all over the plane; a failure counts as ``LIMIT``."""
    policy = ActorPolicy(network, {}, deterministic=True)
    starts = [np.array([x, y]) for x in np.linspace(-1, 0.2, 5) for y in np.linspace(-1, 0.2, 5)]
    episodes = [rollout(lambda s: policy.act({STATE: s}, TASK), start, Source.POLICY) for start in starts]
    return float(np.mean([len(e) if e.terminals[-1] else LIMIT for e in episodes]))


def common(ensemble: int, **changes: Any) -> ActorCriticConfig:
    actor = ActorConfig(lr=1e-3, bc=BCConfig(scaling="value", weight=0.05, form="squared"))
    return ActorCriticConfig(
        actor=actor,
        ensemble=ensemble,
        hidden=(64, 64),
        critic_lr=1e-3,
        tau=0.02,
        initial_temperature=0.1,
        temperature_lr=1e-3,
        value_range=(-1 / (1 - GAMMA), 0),
        **changes,
    )


def rlpd(network: GaussianPolicy, folder: Path) -> RLPDLearner:
    return RLPDLearner(network, RLPDConfig(common=common(4), actor_every=2), Folder(folder))


def calql(network: GaussianPolicy, folder: Path) -> CalQLLearner:
    return CalQLLearner(network, CalQLConfig(common=common(2), n_actions=2, alpha=0.1), Folder(folder))


@pytest.mark.parametrize(("make", "offline_steps"), [(rlpd, 0), (calql, 1)])
def test_it_learns_to_go_there_straight(make: Callable[..., Any], offline_steps: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = prior(rng)
    config = TransitionMixConfig(
        offline_steps=offline_steps, offline_updates_per_step=300, batch_size=64, utd=4, gamma=GAMMA
    )
    mixer = TransitionMixer(data, None, config, tasks=[TASK.instruction])
    network = GaussianPolicy(PolicyConfig(state_size=2, action_size=2, hidden=(64, 64)))
    network.set_normalisation(*normalisation(mixer.offline.states()))
    before = steps_needed(GaussianPolicy(network.config))
    learner = make(network, tmp_path)
    acting = ActorPolicy(GaussianPolicy(network.config), {})
    update = learner.weights()
    for step in range(1, 31):
        if step > offline_steps:
            acting.load(update.uri)
            acting.reset(step)
            act: Act = lambda s: acting.act({STATE: s}, TASK)  # noqa: E731
            mixer.add([rollout(act, rng.uniform(-1, 0.2, 2), Source.POLICY, update.version)])
        for batch in mixer.batches(step):
            learner.update(batch)
        update = learner.weights()
    trained = GaussianPolicy(network.config)
    trained.load_weights(Path(update.uri.removeprefix("file:")))
    demonstrated = float(np.mean([len(e) for e in data if e.terminals[-1]]))
    # 0.8 to 2.2 from the goal's edge in strides of 0.25 to 0.35: at best about five steps on average.
    assert before > 12
    assert steps_needed(trained) < min(7.0, demonstrated)
