"""Master weights: small updates are not lost, accumulation averages, state continues exactly."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from align.learners.optim import MasterAdamW, OptimizerConfig
from align.learners.preference import XPO, LearnerConfig, PreferenceLearner
from align.types import PairBatch
from rollouts.types import Origin
from tests.align.learners.pairs import BATCH, PAIRS, Shelf


def test_learning_rate_by_hand() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, decay="linear", decay_steps=10)
    assert [config.lr_at(s) for s in (0, 3, 4, 9, 14, 99)] == [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]
    cosine = OptimizerConfig(lr=2.0, decay="cosine", decay_steps=8)
    assert cosine.lr_at(4) == pytest.approx(1.0)
    assert cosine.lr_at(2) == pytest.approx(1 + math.cos(math.pi / 4))
    assert OptimizerConfig(lr=3.0).lr_at(1000) == 3.0


def test_updates_below_the_rounding_of_bfloat16_add_up() -> None:
    # Near 1, bfloat16 knows steps of 2**-7; a hundred updates of 1e-4 must still arrive.
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optim = MasterAdamW(layer, OptimizerConfig(lr=1e-4, max_grad_norm=1e9))
    for _ in range(100):
        layer.weight.grad = torch.ones_like(layer.weight)
        optim.accumulate()
        optim.step()
    assert layer.weight.item() == pytest.approx(0.99, abs=2**-7)
    assert layer.weight.item() < 1.0


def test_clipping_and_reported_norm() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optim = MasterAdamW(layer, OptimizerConfig(lr=0.1, max_grad_norm=1.0))
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    metrics = optim.step()
    assert metrics == {"optim/lr": 0.1, "optim/grad_norm": 5.0}


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    before = layer.weight.detach().clone()
    optim = MasterAdamW(layer, OptimizerConfig(lr=0.1))
    layer.weight.grad = torch.full_like(layer.weight, math.nan)
    optim.accumulate()
    with pytest.raises(FloatingPointError, match="optimiser step 0"):
        optim.step()
    assert torch.equal(layer.weight, before)


def learner(model: Path, micro: int, dtype: str = "float32", **loss: float) -> PreferenceLearner:
    config = LearnerConfig(
        model, OptimizerConfig(lr=1e-3, max_grad_norm=0.5), dtype=dtype, micro_batch_tokens=micro, probe_ids=(5, 6, 7)
    )
    return PreferenceLearner(config, XPO(**{"beta": 0.1, "alpha": 1e-3, **loss}), lambda policy: Shelf())


def test_accumulation_averages(tiny_model: Path) -> None:
    # 1 x 8, 4 x 2 and 8 x 1: rows have 8 tokens each.
    learners = [learner(tiny_model, micro) for micro in (64, 16, 8)]
    metrics = [each.update(BATCH) for each in learners]
    states = [each.state_dict()["optim"]["masters"] for each in learners]
    for other, state in zip(metrics[1:], states[1:], strict=True):
        assert other["loss/total"] == pytest.approx(metrics[0]["loss/total"], abs=1e-6)
        assert other["optim/grad_norm"] == pytest.approx(metrics[0]["optim/grad_norm"], rel=1e-4)
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor, atol=2e-5, rtol=0)


def test_first_update_by_hand(tiny_model: Path) -> None:
    metrics = learner(tiny_model, 64).update(BATCH)
    assert metrics["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["loss/bonus"] == pytest.approx(0.0, abs=1e-6)  # the log-ratio form is zero at the reference
    assert metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert (metrics["alpha"], metrics["beta"], metrics["buffer/fresh_fraction"]) == (1e-3, 0.1, 1.0)


def test_updates_raise_the_margin_and_the_bonus_lowers_the_reference_sample(tiny_model: Path) -> None:
    plain, bold = learner(tiny_model, 64, alpha=0.0), learner(tiny_model, 64, alpha=1.0)
    for _ in range(4):
        without, with_bonus = plain.update(BATCH), bold.update(BATCH)
    assert without["rewards/margins"] > 0.01
    assert with_bonus["xpo/ref_sample_logp"] < without["xpo/ref_sample_logp"]


def test_pairs_without_a_reference_sample_carry_no_bonus(tiny_model: Path) -> None:
    import dataclasses

    ours = tuple(dataclasses.replace(p, rejected=dataclasses.replace(p.rejected, origin=Origin.POLICY)) for p in PAIRS)
    batch = PairBatch(ours, (False,) * 8, 8)
    zero, large = learner(tiny_model, 64, alpha=0.0), learner(tiny_model, 64, alpha=5.0)
    for _ in range(2):
        first, second = zero.update(batch), large.update(batch)
    assert first["loss/total"] == second["loss/total"]
    assert second["loss/bonus"] == 0.0


def test_versions_count_changes_and_the_probe_is_the_published_policy(tiny_model: Path) -> None:
    from align.losses.logps import sequence_logps
    from rollouts.models import load_causal_lm

    one = learner(tiny_model, 64)
    assert one.weights().version == 0
    one.update(BATCH)
    update = one.weights()
    assert (update.version, one.weights().version) == (1, 1)
    shelf = one._publisher
    assert isinstance(shelf, Shelf) and "lm_head.weight" not in shelf.tensors  # tied: the engine knows
    copy = load_causal_lm(tiny_model, torch.float32, "eager")
    missing, unexpected = copy.load_state_dict(shelf.tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert update.probe_logprobs == pytest.approx(sequence_logps(copy, (5, 6, 7)), abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_continues_bit_for_bit(tiny_model: Path, dtype: str, tmp_path: Path) -> None:
    one = learner(tiny_model, 16, dtype)
    one.update(BATCH)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = learner(tiny_model, 16, dtype)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    first, second = one.update(BATCH), other.update(BATCH)
    clocks = {name for name in first if name.startswith("perf/")}
    assert {k: v for k, v in first.items() if k not in clocks} == {k: v for k, v in second.items() if k not in clocks}
    ours, theirs = one.state_dict()["optim"]["masters"], other.state_dict()["optim"]["masters"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
