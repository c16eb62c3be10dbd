"""The preference learner with an adapter: it learns, keeps its budget, accumulates and continues exactly."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.learners.adapters import AdapterConfig
from align.learners.objectives import XPO, Schedule
from align.learners.optim import OptimizerConfig
from align.learners.preference import LearnerConfig, PreferenceLearner
from align.losses.logps import sequence_logps
from align.tracking.metrics import undocumented
from rollouts.models import load_causal_lm
from tests.align.learners.pairs import BATCH, Shelf

LORA = AdapterConfig(rank=4, alpha=8)
RSLORA = dataclasses.replace(LORA, use_rslora=True)
ADALORA = AdapterConfig("adalora", alpha=16, init_rank=4, target_rank=2, tinit=1, tfinal=2, total_step=8)
ADAPTERS = pytest.mark.parametrize("adapter", [LORA, RSLORA, ADALORA], ids=["lora", "rslora", "adalora"])


def learner(
    model: Path, adapter: AdapterConfig | None, *, lr: float = 1e-2, eps: float = 1e-8, **options: Any
) -> PreferenceLearner:
    optimizer = OptimizerConfig(lr=lr, eps=eps, max_grad_norm=0.5)
    defaults = {"dtype": "float32", "micro_batch_tokens": 64, "probe_ids": (5, 6, 7)}
    config = LearnerConfig(model, optimizer, adapter=adapter, **{**defaults, **options})
    return PreferenceLearner(config, XPO(Schedule(0.1), Schedule(1e-3)), lambda policy: Shelf())


def masters(learner: PreferenceLearner) -> dict[str, Tensor]:
    state: dict[str, Tensor] = learner.state_dict()["optim"]["masters"]
    return state


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


@ADAPTERS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_falls_and_only_the_adapter_moves(tiny_model: Path, adapter: AdapterConfig, dtype: str) -> None:
    one = learner(tiny_model, adapter, dtype=dtype)
    before = {name: p.clone() for name, p in one.policy.model.named_parameters()}
    metrics = [one.update(BATCH) for _ in range(6)]
    losses = [m["loss/preference"] for m in metrics]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)  # ln 2: the policy starts as the reference
    assert losses[-1] < losses[0] - 0.03
    moved = {name for name, p in one.policy.model.named_parameters() if not torch.equal(p, before[name])}
    names = {name for name in before if "lora_" in name}
    assert moved <= names == set(masters(one))
    # AdaLoRA's E starts at zero and is there again where a matrix has lost all its directions.
    assert {name for name in names if "lora_E" not in name} <= moved
    assert undocumented(name for m in metrics for name in m) == []


def test_updates_below_the_rounding_of_bfloat16_reach_the_adapter(tiny_model: Path) -> None:
    # Entries of A are up to 1/8, where bfloat16 knows steps of 2**-11; twenty steps of 1e-5 must still arrive.
    one = learner(tiny_model, LORA, dtype="bfloat16", lr=1e-5)
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    before = masters(one)[name].clone()
    for _ in range(20):
        one.update(BATCH)
    change = (masters(one)[name] - before).abs()
    assert 1e-5 < change.mean() < 20.5e-5


def test_the_budget_falls_by_its_schedule(tiny_model: Path) -> None:
    # 14 matrices: 56 directions at first, 28 at last. After step s = 2..6 the cubic schedule leaves
    # int(28 (1 - (s - 1) / 5)**3 + 28): 42.3, 34.0, 29.8, 28.2, 28; then the pattern stays.
    one = learner(tiny_model, ADALORA)
    ranks = [one.update(BATCH)["adapter/rank_mean"] for _ in range(8)]
    assert ranks == pytest.approx([n / 14 for n in (56, 42, 34, 29, 28, 28, 28, 28)])


def test_the_orthogonality_term_is_part_of_the_loss_and_falls(tiny_model: Path) -> None:
    one = learner(tiny_model, dataclasses.replace(ADALORA, orth_reg_weight=10.0))
    metrics = [one.update(BATCH) for _ in range(6)]
    for m in metrics:
        assert m["loss/total"] == pytest.approx(m["loss/preference"] + m["loss/bonus"] + m["loss/orthogonality"])
    assert metrics[-1]["loss/orthogonality"] < metrics[0]["loss/orthogonality"] - 0.1


@pytest.mark.parametrize("adapter", [None, LORA, ADALORA], ids=["full", "lora", "adalora"])
def test_accumulation_averages(tiny_model: Path, adapter: AdapterConfig | None) -> None:
    # Rows have 8 tokens: 1 x 8, 4 x 2 and 8 x 1. Where a gradient is near zero AdamW's step is its sign, noise; a
    # large eps makes the step as smooth as the gradient.
    runs = []
    for tokens in (64, 16, 8):
        one = learner(tiny_model, adapter, eps=1e-2, lr=1e-3, micro_batch_tokens=tokens)
        runs.append(([one.update(BATCH) for _ in range(2)], masters(one)))
    metrics, weights = runs[0]
    for other_metrics, other_weights in runs[1:]:
        for ours, theirs in zip(metrics, other_metrics, strict=True):
            assert theirs["loss/total"] == pytest.approx(ours["loss/total"], abs=1e-6)
            assert theirs["optim/grad_norm"] == pytest.approx(ours["optim/grad_norm"], rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(other_weights[name], tensor, atol=1e-6, rtol=0)


@ADAPTERS
@pytest.mark.parametrize("stop", [3, 7])
def test_state_continues_bit_for_bit(tiny_model: Path, adapter: AdapterConfig, stop: int, tmp_path: Path) -> None:
    # AdaLoRA: stopped while the budget falls, and after it has reached its target.
    adapter = dataclasses.replace(adapter, dropout=0.1)
    one = learner(tiny_model, adapter, micro_batch_tokens=16)
    for _ in range(stop):
        one.update(BATCH)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    ahead = [numbers(one.update(BATCH)) for _ in range(9 - stop)]
    other = learner(tiny_model, adapter, micro_batch_tokens=16, seed=1)  # another start: all must come from the state
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [numbers(other.update(BATCH)) for _ in range(9 - stop)] == ahead
    assert all(torch.equal(tensor, masters(other)[name]) for name, tensor in masters(one).items())
    assert all(torch.equal(tensor, other.policy.published()[name]) for name, tensor in one.policy.published().items())


def test_the_probe_is_what_an_engine_would_compute(tiny_model: Path) -> None:
    one = learner(tiny_model, LORA)
    one.update(BATCH)
    update = one.weights()
    shelf = one._publisher
    assert isinstance(shelf, Shelf)
    copy = load_causal_lm(tiny_model, torch.float32, "eager")
    assert update.probe_logprobs != pytest.approx(sequence_logps(copy, (5, 6, 7)), abs=1e-3)
    copy.load_state_dict(shelf.tensors, strict=False)
    assert update.probe_logprobs == pytest.approx(sequence_logps(copy, (5, 6, 7)), abs=1e-5)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # peft on its own file
def test_a_trained_adalora_is_saved_at_its_target_rank_and_lives_on(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    one, twin = learner(tiny_model, ADALORA), learner(tiny_model, ADALORA)
    for _ in range(7):
        one.update(BATCH)
        twin.update(BATCH)
    one.save_model(tmp_path)
    live = sequence_logps(one.policy.model, (5, 6, 7, 8))
    plain = load_causal_lm(tmp_path, torch.float32, "eager")
    assert sequence_logps(plain, (5, 6, 7, 8)) == pytest.approx(live, abs=1e-5)
    base = load_causal_lm(tiny_model, torch.float32, "eager")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).get_base_model()
    assert sequence_logps(adapted, (5, 6, 7, 8)) == pytest.approx(live, abs=1e-5)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(len(tensor) for name, tensor in saved.items() if name.endswith("lora_E")) == 2 * 14
    assert numbers(one.update(BATCH)) == numbers(twin.update(BATCH))


def test_intruders_of_a_violent_update_are_reported(tiny_model: Path) -> None:
    one = learner(tiny_model, dataclasses.replace(LORA, rank=1, alpha=64), lr=0.1)
    assert one.intruders().matrices == ()  # nothing has moved
    for _ in range(3):
        one.update(BATCH)
    report = one.intruders()
    assert len(report.matrices) == 14
    assert report.count > 0 and report.highest == 0
    gentle = learner(tiny_model, LORA, lr=1e-5)
    gentle.update(BATCH)
    assert gentle.intruders().metrics() == {"intruder/count": 0.0, "intruder/matrices_share": 0.0}


def test_frozen_weights_cost_less_work(tiny_model: Path) -> None:
    # In 10^9 operations: pairs make 8 rows of 8 tokens and 40 completion tokens. A decoder layer has 64 * (64 + 32 +
    # 32 + 64) + 3 * 64 * 128 weights in products and 2 * 64 in norms, and there is a last norm of 64.
    full, adapted = learner(tiny_model, None), learner(tiny_model, LORA)
    head = full.policy.model.get_output_embeddings().weight.numel()
    decoder = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64) + 64
    lora = sum(tensor.numel() for tensor in masters(adapted).values())
    assert full.update(BATCH)["perf/train_gflop_total"] == pytest.approx(6e-9 * (decoder * 64 + head * 40))
    expected = 4e-9 * (decoder * 64 + head * 40) + 6e-9 * lora * 64
    assert adapted.update(BATCH)["perf/train_gflop_total"] == pytest.approx(expected)
