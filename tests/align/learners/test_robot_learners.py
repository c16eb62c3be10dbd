"""What every learner of a robot promises: exact resume, published weights, a warm start, and a guard against NaN."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.learners.actor import ActorConfig, BCConfig, LearnerError
from align.learners.actor_critic import ActorCriticConfig
from align.learners.bc import BCLearner
from align.learners.calql import CalQLConfig, CalQLLearner
from align.learners.rlpd import RLPDConfig, RLPDLearner
from align.losses.actor import masked_mean
from align.protocols import Learner
from align.types import TransitionBatch
from cluster.weights import WeightStore
from rollouts.envs.types import IMAGE, STATE, Task
from rollouts.policies.actor import ActorPolicy
from rollouts.policies.gaussian import GaussianPolicy
from tests.align.learners.robots import WORDS, Folder, batch, policy

Make = Callable[..., Any]
EVERY = {"metrics_every": 1}


def actor(**changes: Any) -> ActorConfig:
    return ActorConfig(**({"lr": 1e-3, "seed": 1, **EVERY} | changes))


def common(ensemble: int, settings: ActorConfig | None = None, **changes: Any) -> ActorCriticConfig:
    return ActorCriticConfig(actor=settings or actor(), ensemble=ensemble, hidden=(8, 8), **changes)


def calql(
    folder: Path, settings: ActorConfig | None = None, network: GaussianPolicy | None = None, **changes: Any
) -> CalQLLearner:
    return CalQLLearner(
        network or policy(), CalQLConfig(common=common(2, settings, **changes), n_actions=2), Folder(folder)
    )


def lagrange(
    folder: Path, settings: ActorConfig | None = None, network: GaussianPolicy | None = None, **changes: Any
) -> CalQLLearner:
    config = CalQLConfig(common=common(2, settings, **changes), n_actions=2, target_gap=0.8)
    return CalQLLearner(network or policy(), config, Folder(folder))


def rlpd(
    folder: Path, settings: ActorConfig | None = None, network: GaussianPolicy | None = None, **changes: Any
) -> RLPDLearner:
    return RLPDLearner(
        network or policy(), RLPDConfig(common=common(4, settings, **changes), actor_every=1), Folder(folder)
    )


def bc(folder: Path, settings: ActorConfig | None = None, network: GaussianPolicy | None = None) -> BCLearner:
    return BCLearner(network or policy(), settings or actor(), Folder(folder))


LEARNERS: dict[str, Make] = {"cal-ql": calql, "lagrange": lagrange, "rlpd": rlpd, "bc": bc}
CRITICS = {name: make for name, make in LEARNERS.items() if name != "bc"}


def flat(state: Any) -> dict[str, Any]:
    if isinstance(state, dict):
        return {f"{k}.{name}": v for k, part in state.items() for name, v in flat(part).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)))
    return {"": state}


def same(one: Any, other: Any) -> bool:
    a, b = flat(one), flat(other)
    equal = all(torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items())
    return a.keys() == b.keys() and equal


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_resume_is_exact_to_the_bit(name: str, image: bool, tmp_path: Path) -> None:
    settings = actor(bc=BCConfig(scaling="loss_ratio", warm_start=2), max_grad_norm=1.0)

    def learner(seed: int) -> Any:
        return LEARNERS[name](tmp_path, settings, policy(seed, image=image))

    whole, one, other = learner(0), learner(0), learner(7)
    data = [batch(i, image=image) for i in range(8)]
    expected = [whole.update(b) for b in data]
    assert [one.update(b) for b in data[:5]] == expected[:5]
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [other.update(b) for b in data[5:]] == expected[5:]
    assert same(whole.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", LEARNERS)
def test_the_global_generator_decides_nothing(name: str, tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        learner = LEARNERS[name](tmp_path)
        learner.update(batch())
        states.append(learner.state_dict())
    assert same(*states)


@pytest.mark.parametrize("name", LEARNERS)
def test_weights_are_files_that_a_policy_loads(name: str, tmp_path: Path) -> None:
    learner: Learner[TransitionBatch] = LEARNERS[name](tmp_path)
    first = learner.weights()
    assert learner.weights() == first
    learner.update(batch())
    second = learner.weights()
    assert second.version == first.version + 1
    assert second.probe_ids == () and second.uri != first.uri
    words = {"open": torch.ones(WORDS).numpy()}
    acting = ActorPolicy(policy(99), words, deterministic=True)
    seen = {STATE: torch.ones(3).numpy()}
    actions = []
    for update in (first, second):
        acting.load(update.uri)
        actions.append(acting.act(seen, Task("open", "open")))
    # Version 0 is the policy as it was built, version 1 another.
    acting.network.load_state_dict(policy().state_dict())
    assert (acting.act(seen, Task("open", "open")) == actions[0]).all() and (actions[0] != actions[1]).any()


def test_they_travel_through_the_weight_store(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    learner = CalQLLearner(policy(image=True), CalQLConfig(common=common(2)), store)
    learner.update(batch(image=True))
    other = policy(3, image=True)
    other.load_weights(Path(learner.weights().uri.removeprefix("file:")))
    assert same(other.state_dict(), learner.core.policy.state_dict())
    learner.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CRITICS)
def test_a_warm_start_imitates_and_touches_nothing_else(name: str, tmp_path: Path) -> None:
    learner = CRITICS[name](tmp_path, actor(bc=BCConfig(warm_start=3)))
    core = learner.core
    before = {key: value.clone() for key, value in core.critics.state_dict().items()}
    data = batch()
    metrics = [learner.update(data) for _ in range(3)]
    assert metrics[2]["train/bc_loss"] < metrics[0]["train/bc_loss"]
    assert metrics[0]["train/imitated"] == 0.5
    assert same(core.critics.state_dict(), before)
    assert "train/td_loss" in learner.update(data)
    assert not same(core.critics.state_dict(), before)


@pytest.mark.parametrize("name", CRITICS)
def test_critics_may_learn_alone_before_the_actor_listens(name: str, tmp_path: Path) -> None:
    settings = common(4, actor(bc=BCConfig(warm_start=1)), critic_warm_start=2)
    if name == "rlpd":
        learner: Any = RLPDLearner(policy(), RLPDConfig(common=settings), Folder(tmp_path))
    else:
        gap = 0.8 if name == "lagrange" else None
        learner = CalQLLearner(policy(), CalQLConfig(common=settings, n_actions=2, target_gap=gap), Folder(tmp_path))
    actors, critics, metrics = [], [], []
    for i in range(4):
        metrics.append(learner.update(batch(i)))
        actors.append([p.detach().clone() for p in (*learner.core.actor.parameters, learner.core.log_temperature)])
        critics.append([p.detach().clone() for p in learner.core.critic_parameters])
    assert [same(a, b) for a, b in pairwise(actors)] == [True, True, False]
    assert [same(a, b) for a, b in pairwise(critics)] == [False, False, False]
    assert ["train/actor_loss" in m for m in metrics] == [False, False, False, True]


def test_imitation_is_of_what_is_worth_it_alone(tmp_path: Path) -> None:
    learner = bc(tmp_path)
    data = batch()
    network, core = learner.actor.policy, learner.actor
    mean, log_std = network(network.features(data.observations, data.instructions))
    expected = masked_mean(core.imitation(mean, log_std, data.actions), data.imitate)
    rest = replace(data, actions=torch.where(data.imitate.unsqueeze(-1), data.actions, 0.0))
    assert learner.update(rest)["train/bc_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    nothing = replace(data, imitate=torch.zeros(len(data), dtype=torch.bool))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert learner.update(nothing)["train/imitated"] == 0
    assert same(network.state_dict(), before)


@pytest.mark.parametrize("form", ["log_likelihood", "squared"])
def test_imitation_learns_the_demonstrated_actions(form: Any, tmp_path: Path) -> None:
    learner = bc(tmp_path, actor(lr=3e-3, bc=BCConfig(form=form)))
    data = batch(size=4)
    for _ in range(800):
        learner.update(data)
    network = learner.actor.policy
    mean, _ = network(network.features(data.observations, data.instructions))
    demonstrated = data.actions[data.imitate]
    assert float((torch.tanh(mean)[data.imitate] - demonstrated).abs().max().detach()) < 0.05


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rewards", "a reward in the batch is not finite"),
        ("mc_returns", "a Monte-Carlo return in the batch is not finite"),
        ("observations", "a observation 'state' in the batch is not finite"),
    ],
)
def test_data_that_is_not_finite_is_named_and_no_weight_changes(field: str, message: str, tmp_path: Path) -> None:
    learner = calql(tmp_path)
    learner.update(batch())
    before = {key: value.clone() for key, value in flat(learner.state_dict()).items() if isinstance(value, Tensor)}
    data = batch()
    if field == "observations":
        broken = replace(data, observations={STATE: data.observations[STATE] * math.nan})
    else:
        broken = replace(data, **{field: torch.full((len(data),), math.nan)})
    with pytest.raises(FloatingPointError, match=f"update 1: {message}"):
        learner.update(broken)
    after = flat(learner.state_dict())
    assert all(torch.equal(after[key], value) for key, value in before.items() if "generator" not in key)


@pytest.mark.parametrize("name", CRITICS)
def test_the_term_that_diverged_is_named(name: str, tmp_path: Path) -> None:
    learner = CRITICS[name](tmp_path)
    with torch.no_grad():
        learner.core.target_critics.output_bias.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="update 0: train/td_loss is not finite"):
        learner.update(batch())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    learner = calql(tmp_path, actor(max_grad_norm=1e-6))
    core = learner.core
    seen: list[float] = []
    step = core.step_critics

    def watch() -> None:
        seen.append(float(torch.stack([p.grad.norm() for p in core.critic_parameters if p.grad is not None]).norm()))
        step()

    core.step_critics = watch  # type: ignore[method-assign]
    metrics = learner.update(batch())
    assert metrics["train/critic_grad_norm"] > 1e-3
    assert seen[0] == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize("name", CRITICS)
def test_the_encoder_learns_from_the_critics_alone_and_its_copy_follows(name: str, tmp_path: Path) -> None:
    learner = CRITICS[name](tmp_path, network=policy(image=True))
    core = learner.core
    data = batch(image=True)
    encoded = core.encode(data)
    noise = core.actor.noise(len(data), 2)
    objective = core.actor_objective(data, encoded.features.detach(), noise, reduction="min")
    unused = torch.autograd.grad(objective.loss, core.actor.encoder_parameters, allow_unused=True)
    assert all(gradient is None for gradient in unused)
    before = [p.detach().clone() for p in core.actor.encoder_parameters]
    learner.update(data)
    assert core.target_encoder is not None
    for old, new, slow in zip(before, core.actor.encoder_parameters, core.target_encoder.parameters(), strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(slow, 0.995 * old + 0.005 * new.detach())


@pytest.mark.parametrize("name", CRITICS)
def test_an_encoder_that_is_to_stay_is_as_imitation_has_left_it(name: str, tmp_path: Path) -> None:
    learner = CRITICS[name](tmp_path, actor(bc=BCConfig(warm_start=2)), policy(image=True), encoder_lr=0.0)
    core = learner.core
    weights = []
    for i in range(4):
        weights.append([p.detach().clone() for p in core.actor.encoder_parameters])
        learner.update(batch(i, image=True))
    weights.append(core.actor.encoder_parameters)
    assert [not same(a, b) for a, b in pairwise(weights)] == [True, True, False, False]
    assert core.target_encoder is not None and same(list(core.target_encoder.parameters()), weights[-1])
    assert not core.encode(batch(image=True)).features.requires_grad


def test_critics_train_the_encoder_at_a_rate_of_its_own(tmp_path: Path) -> None:
    settings = actor(bc=BCConfig(warm_start=1), encoder_lr=1e-2)
    learner = calql(tmp_path, settings, policy(image=True), encoder_lr=1e-5)
    before = [p.detach().clone() for p in learner.core.actor.encoder_parameters]
    moves = []
    for i in range(2):
        learner.update(batch(i, image=True))
        after = [p.detach().clone() for p in learner.core.actor.encoder_parameters]
        moves.append(max(float((new - old).abs().max()) for old, new in zip(before, after, strict=True)))
        before = after
    # Adam's steps are about as long as its rate, whatever the gradient.
    assert 0.5e-2 < moves[0] < 2e-2
    assert 0 < moves[1] < 2e-5


def test_images_are_shifted_in_training(tmp_path: Path) -> None:
    core = calql(tmp_path, network=policy(image=True)).core
    data = batch(image=True)
    assert not torch.equal(core.actor.augment(data.observations)[IMAGE], data.observations[IMAGE])
    still = calql(tmp_path, actor(augment_pad=0), policy(image=True)).core
    assert still.actor.augment(data.observations) is data.observations


def test_the_actor_of_rlpd_waits_for_its_turn(tmp_path: Path) -> None:
    config = RLPDConfig(common=common(4), actor_every=3)
    learner = RLPDLearner(policy(), config, Folder(tmp_path))
    weights, metrics = [], []
    for i in range(6):
        metrics.append(learner.update(batch(i)))
        weights.append([p.detach().clone() for p in learner.core.actor.parameters])
    changed = [not same(a, b) for a, b in pairwise(weights)]
    assert changed == [False, True, False, False, True]
    assert ["train/actor_loss" in m for m in metrics] == [False, False, True, False, False, True]


def test_metrics_come_every_so_often_and_say_what_was_learned_from(tmp_path: Path) -> None:
    settings = actor(metrics_every=3, bc=BCConfig(scaling="value"))
    config = CalQLConfig(common=common(2, settings, value_range=(-10.0, 0.0)), n_actions=2, target_gap=1.0)
    learner = CalQLLearner(policy(), config, Folder(tmp_path))
    reported = [learner.update(batch(i)) for i in range(4)]
    assert [bool(m) for m in reported] == [True, False, False, True]
    expected = {
        "train/critic_loss", "train/td_loss", "train/conservative_loss", "train/conservative_gap", "train/q_data",
        "train/q_policy", "train/q_policy_outside", "train/q_outside", "train/calibration_rate", "train/mc_return",
        "train/actor_loss",
        "train/bc_loss", "train/bc_weight", "train/temperature", "train/entropy", "train/multiplier",
        "train/critic_grad_norm", "train/actor_grad_norm", "buffer/offline_fraction", "buffer/staleness",
    }  # fmt: skip
    assert set(reported[0]) == expected
    assert all(math.isfinite(value) for value in reported[0].values())
    assert reported[0]["buffer/offline_fraction"] == 0.5
    learner.weights()
    later = replace(batch(), policy_versions=torch.tensor([0, 0, 0, 1, 0, 0]))
    # Version 1 is out; the online half was made by versions 1, 0 and 0.
    assert learner.core.actor.about(later)["buffer/staleness"] == pytest.approx(2 / 3)
    offline = replace(later, is_offline=torch.ones(6, dtype=torch.bool))
    assert "buffer/staleness" not in learner.core.actor.about(offline)


def test_divergence_is_counted_and_backups_can_be_kept_in_range(tmp_path: Path) -> None:
    def learner(clip: bool) -> CalQLLearner:
        settings = common(2, value_range=(-10.0, 0.0), clip_targets=clip)
        made = CalQLLearner(policy(), CalQLConfig(common=settings, n_actions=2, alpha=0.0), Folder(tmp_path))
        with torch.no_grad():
            made.core.target_critics.output_bias.fill_(1000.0)
            made.core.critics.output_bias.fill_(1000.0)
        return made

    metrics = learner(False).update(batch())
    assert metrics["train/q_outside"] == metrics["train/q_policy_outside"] == 1
    # With targets at most 0 the error of a value of 1000 is 1000 squared or more, and without far less.
    assert learner(True).update(batch())["train/td_loss"] > 0.98e6 > metrics["train/td_loss"]


def test_alpha_may_change_online_and_calibration_does_not(tmp_path: Path) -> None:
    config = CalQLConfig(common=common(2), n_actions=2, alpha=5.0, alpha_online=0.5)
    learner = CalQLLearner(policy(), config, Folder(tmp_path))
    mixed = batch()
    offline = replace(mixed, is_offline=torch.ones(len(mixed), dtype=torch.bool))
    draws = learner.draw(len(mixed))
    parts = [learner.critic_objective(b, learner.core.encode(b), draws) for b in (offline, mixed)]
    torch.testing.assert_close(parts[0].conservative, 10 * parts[1].conservative)
    assert float(parts[0].gap.calibrated) == float(parts[1].gap.calibrated)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BCConfig(weight=-1), "weight of at least 0"),
        (lambda: CalQLConfig(n_actions=0), "n_actions of at least 1"),
        (lambda: RLPDConfig(target_subset=11), "target_subset must be from 1 to the ensemble's 10"),
        (lambda: ActorCriticConfig(clip_targets=True), "needs a value_range"),
        (lambda: ActorCriticConfig(initial_temperature=0), "above 0"),
        (lambda: ActorCriticConfig(ensemble=0), "need members"),
    ],
)
def test_faults_of_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        make()


@pytest.mark.parametrize("name", LEARNERS)
def test_closing_takes_the_weights_back(name: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    learner = LEARNERS[name](tmp_path)
    owner = learner.actor if name == "bc" else learner.core.actor
    owner._publisher = folder
    learner.close()
    assert folder.closed
