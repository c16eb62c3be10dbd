"""The Gaussian through tanh: densities against torch's own and by quadrature, what it sees, and its files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rollouts.envs.types import STATE
from rollouts.policies.config import PolicyConfig, PolicyError
from rollouts.policies.gaussian import ACTION_LIMIT, GaussianPolicy, log_density, squash


def policy(seed: int = 0, **changes: Any) -> GaussianPolicy:
    settings: dict[str, Any] = {"state_size": 3, "action_size": 2, "instruction_size": 4, "hidden": (8, 8)}
    return GaussianPolicy(PolicyConfig(**(settings | changes)), seed)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 1), st.floats(-2, 2)), min_size=1, max_size=4))
def test_densities_are_those_of_torch(rows: list[tuple[float, float, float]]) -> None:
    mean, log_std, noise = t(*(r[0] for r in rows)), t(*(r[1] for r in rows)), t(*(r[2] for r in rows))
    action, logp = squash(mean, log_std, noise)
    base = Independent(Normal(mean, log_std.exp()), 1)
    theirs = TransformedDistribution(base, TanhTransform(cache_size=1))
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    if action.abs().max() < ACTION_LIMIT:
        torch.testing.assert_close(logp, theirs.log_prob(action), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(log_density(mean, log_std, action), logp, atol=1e-6, rtol=1e-6)


def test_a_density_by_hand() -> None:
    # Standard normal at 0: -log(2 pi) / 2 for each of two dimensions, and tanh has slope 1 there.
    action, logp = squash(t(0, 0), t(0, 0), t(0, 0))
    assert action.tolist() == [0, 0]
    assert float(logp) == pytest.approx(-math.log(2 * math.pi))


def test_the_density_is_one() -> None:
    u = torch.linspace(-3.8, 3.8, 20001, dtype=torch.float64)
    actions = torch.tanh(u).unsqueeze(-1)
    density = log_density(t(0.3), t(-1.0), actions).exp()
    assert float(torch.trapezoid(density, actions.squeeze(-1))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("far", [20.0, 100.0, -100.0])
def test_where_tanh_is_flat_densities_and_gradients_stay_finite(far: float) -> None:
    mean, log_std = torch.tensor([far], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    action, logp = squash(mean, log_std, torch.tensor([0.5]))
    logp.backward()
    assert abs(float(action.detach())) == 1
    # log(1 - tanh(u)^2) is 2 log 2 - 2 |u| there, which float32 could not get from tanh.
    u = far + 0.5 * math.exp(-2)
    assert float(logp.detach()) == pytest.approx(
        -0.125 + 2 - 0.5 * math.log(2 * math.pi) - 2 * math.log(2) + 2 * abs(u), rel=1e-5
    )
    assert mean.grad is not None and float(mean.grad) == pytest.approx(math.copysign(2, far))
    assert math.isfinite(float(log_density(mean, log_std, torch.tensor([1.0])).detach()))


def test_several_actions_for_each_state() -> None:
    mean, log_std = torch.zeros(5, 1, 2), torch.zeros(5, 1, 2)
    actions, logps = squash(mean, log_std, torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0)))
    assert actions.shape == (5, 7, 2) and logps.shape == (5, 7)


def test_what_it_sees() -> None:
    network = policy()
    network.set_normalisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.5, 1e-3]))
    seen = network.features({STATE: torch.tensor([[2.0, 2.0, 4.0]])}, torch.tensor([[5.0, 6.0, 7.0, 8.0]]))
    # (2 - 1) / 1, (2 - 2) / 0.5, and a thousand deviations brought back to ten.
    assert seen.tolist() == [[1, 0, 10, 5, 6, 7, 8]]
    assert network.feature_size == 7


def test_it_sees_some_of_the_state_where_the_rest_is_not_its_to_know() -> None:
    network = policy(state_columns=(2, 0))
    network.set_normalisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.5, 2.0]))
    seen = network.features({STATE: torch.tensor([[2.0, 9.0, 4.0]])}, torch.tensor([[5.0, 6.0, 7.0, 8.0]]))
    assert seen.tolist() == [[0.5, 1, 5, 6, 7, 8]]
    assert network.feature_size == 6


def test_a_fresh_policy_acts_around_zero_with_the_spread_that_was_asked_for() -> None:
    mean, log_std = policy(log_std_offset=-0.7)(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    assert bool((mean.abs() < 0.1).all())
    assert bool(((log_std + 0.7).abs() < 0.1).all())


def test_the_deviation_is_clamped() -> None:
    network = policy(log_std_min=-1.5, log_std_max=-1.2, log_std_offset=3.0)
    assert network(torch.zeros(1, 7))[1].tolist() == [[pytest.approx(-1.2)] * 2]


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = policy(1), policy(1), policy(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.output.weight, other.output.weight)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    network = policy(1, hidden=(5, 6))
    network.set_normalisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    network.save(tmp_path / "policy")
    network.save(tmp_path / "policy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]
    loaded = GaussianPolicy.load(tmp_path / "policy")
    assert loaded.config == network.config
    own, theirs = network.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "policy"
    policy(1).save(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(PolicyError, match="cannot be written: No space left"):
        policy(2).save(folder)
    assert torch.equal(GaussianPolicy.load(folder).output.weight, policy(1).output.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_faults_of_files(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"holds no policy: config.json is missing"):
        GaussianPolicy.load(tmp_path)
    policy().save(tmp_path / "p")
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    for content, message in (
        ("{", "is no JSON"),
        (json.dumps(config | {"colour": 1}), "unknown keys in a policy's config.json: colour"),
        (json.dumps({"state_size": 3}), "not complete"),
        (json.dumps(config | {"state_size": 4}), "not this policy's weights"),
    ):
        (tmp_path / "p" / "config.json").write_text(content)
        with pytest.raises(PolicyError, match=message):
            GaussianPolicy.load(tmp_path / "p")
    with pytest.raises(PolicyError, match="no weights at"):
        policy().load_weights(tmp_path / "nothing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PolicyError, match="not this policy's weights"):
        policy().load_weights(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_size": 0}, "needs actions"),
        ({"hidden": ()}, "hidden units"),
        ({"log_std_min": 3.0}, "must be below"),
        ({"encoder": "robofume"}, "images need an encoder"),
        ({"image_size": (84, 84)}, "images need an encoder"),
        ({"state_size": 0}, "a state or images"),
        ({"state_columns": ()}, "a state or images"),
        ({"state_columns": (0, 3)}, r"a state of 3 has no columns \[0, 3\]"),
    ],
)
def test_faults_of_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy(**changes)


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(PolicyError, match="floor"):
        policy().set_normalisation(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))
