"""The policy that acts: the Protocol's promises, its seeds, its weights from files, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rollouts.envs.types import IMAGE, STATE, Observation, Policy, Task
from rollouts.policies.actor import ActorPolicy
from rollouts.policies.config import PolicyConfig, PolicyError
from rollouts.policies.gaussian import GaussianPolicy

TASK = Task("open", "open the window")
WORDS = {TASK.instruction: np.array([0.1, -0.2]), "close the window": np.array([0.5, 0.5])}
SEEN: Observation = {STATE: np.array([0.3, -0.4]), IMAGE: np.full((12, 12, 3), 90, dtype=np.uint8)}


def states(seed: int = 0, **changes: bool) -> ActorPolicy:
    network = GaussianPolicy(PolicyConfig(state_size=2, action_size=3, instruction_size=2, hidden=(6,)), seed)
    return ActorPolicy(network, WORDS, **changes)


def mute() -> ActorPolicy:
    return ActorPolicy(GaussianPolicy(PolicyConfig(state_size=2, action_size=3, hidden=(6,))), {})


def images() -> ActorPolicy:
    config = PolicyConfig(
        state_size=0, action_size=3, instruction_size=2, hidden=(6,), encoder="robofume", image_size=(12, 12),
        strides=(1, 1, 1, 1),
    )  # fmt: skip
    return ActorPolicy(GaussianPolicy(config), WORDS)


@pytest.mark.parametrize("make", [states, mute, images, lambda: states(deterministic=True)])
def test_the_promises_of_a_policy(make: Callable[[], ActorPolicy]) -> None:
    policy: Policy = make()
    policy.reset(3)
    first = [policy.act(SEEN, TASK) for _ in range(5)]
    assert all(a.shape == (3,) and a.dtype == np.float32 and np.abs(a).max() <= 1 for a in first)
    policy.reset(3)
    assert all(np.array_equal(policy.act(SEEN, TASK), a) for a in first)


def test_it_samples_unless_it_is_deterministic() -> None:
    sampling, certain = states(), states(deterministic=True)
    assert not np.array_equal(sampling.act(SEEN, TASK), sampling.act(SEEN, TASK))
    assert np.array_equal(certain.act(SEEN, TASK), certain.act(SEEN, TASK))
    drawn = np.stack([sampling.act(SEEN, TASK) for _ in range(2000)])
    assert np.abs(np.arctanh(drawn).mean(0) - np.arctanh(certain.act(SEEN, TASK))).max() < 0.05


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    policy = states()
    policy.reset(1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = policy.act(SEEN, TASK)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    policy.reset(1)
    assert np.array_equal(policy.act(SEEN, TASK), one)


def test_it_hears_its_instruction() -> None:
    policy = states(deterministic=True)
    assert not np.array_equal(policy.act(SEEN, TASK), policy.act(SEEN, Task("close", "close the window")))


def test_it_takes_published_weights(tmp_path: Path) -> None:
    policy, other = states(0, deterministic=True), states(1, deterministic=True)
    save_file(other.network.state_dict(), tmp_path / "w.safetensors")
    before = policy.act(SEEN, TASK)
    for name in (tmp_path / "w.safetensors", f"file:{tmp_path / 'w.safetensors'}"):
        policy.load(name)
        assert np.array_equal(policy.act(SEEN, TASK), other.act(SEEN, TASK))
    assert not np.array_equal(policy.act(SEEN, TASK), before)
    with pytest.raises(PolicyError, match="no weights at"):
        policy.load(tmp_path / "gone.safetensors")


def test_resume_goes_on_identically() -> None:
    whole, other = states(0), states(1)
    whole.act(SEEN, TASK)
    other.load_state_dict(whole.state_dict())
    for _ in range(3):
        assert np.array_equal(whole.act(SEEN, TASK), other.act(SEEN, TASK))


def test_faults() -> None:
    with pytest.raises(PolicyError, match="no embedding for the instruction 'lift it'"):
        states().act(SEEN, Task("lift", "lift it"))
    network = GaussianPolicy(PolicyConfig(state_size=2, action_size=3, instruction_size=5, hidden=(6,)))
    with pytest.raises(PolicyError, match="has 2 numbers, the policy hears 5"):
        ActorPolicy(network, WORDS)
    broken = states()
    with torch.no_grad():
        broken.network.output.bias[0] = float("nan")
    with pytest.raises(PolicyError, match="weights diverged"):
        broken.act(SEEN, TASK)
