"""Policies: what the reference is, what is published, what is saved, and what an adapter is at the start."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.learners.adapters import AdapterConfig
from align.learners.policy import AdapterPolicy, Policy, build_policy
from align.losses.logps import pack_pairs, pair_logps
from rollouts.models import load_causal_lm

LORA = AdapterConfig(rank=4, alpha=8)
RSLORA = dataclasses.replace(LORA, use_rslora=True)
ADALORA = AdapterConfig("adalora", alpha=8, init_rank=4, target_rank=2, tinit=1, tfinal=2, total_step=8)
ADAPTERS = pytest.mark.parametrize("adapter", [LORA, RSLORA, ADALORA], ids=["lora", "rslora", "adalora"])
ROWS = pack_pairs([((5, 6, 7), (8, 9, 2), (20, 2)), ((5, 6), (11, 2), (30, 31, 2))], pad_id=0)


def policy(model: Path, adapter: AdapterConfig | None = None, dtype: str = "float32", **options: Any) -> Policy:
    return build_policy(model, dtype=getattr(torch, dtype), attention="eager", adapter=adapter, **options)


def logps(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat(pair_logps(model, ROWS))


def reference_logps(policy: Policy) -> Tensor:
    with policy.reference() as reference:
        return logps(reference)


def trained(policy: Policy) -> dict[str, Tensor]:
    return {name: p for name, p in policy.model.named_parameters() if p.requires_grad}


def perturb(policy: Policy, size: float = 0.05) -> None:
    """Adds noise to everything that trains, as training would."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained(policy).values():
            p += size * torch.randn(p.shape, generator=draw)


@ADAPTERS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_base_model_bit_for_bit(tiny_model: Path, adapter: AdapterConfig, dtype: str) -> None:
    base = logps(load_causal_lm(tiny_model, getattr(torch, dtype), "eager"))
    ours = policy(tiny_model, adapter, dtype)
    assert torch.equal(logps(ours.model), base)  # B, or E, starts at zero
    perturb(ours)
    assert torch.equal(reference_logps(ours), base)
    assert (logps(ours.model) - base).abs().min() > 1e-3
    assert all(p.requires_grad for p in trained(ours).values()) and trained(ours)  # also after the reference


def test_full_fine_tuning_keeps_a_frozen_copy(tiny_model: Path) -> None:
    base = logps(load_causal_lm(tiny_model, torch.float32, "eager"))
    ours = policy(tiny_model)
    assert torch.equal(logps(ours.model), base)
    perturb(ours)
    assert torch.equal(reference_logps(ours), base)
    assert (logps(ours.model) - base).abs().min() > 1e-3
    with ours.reference() as reference:
        assert not any(p.requires_grad for p in reference.parameters())


def test_an_adapter_holds_the_model_once_and_nothing_else_trains(tiny_model: Path) -> None:
    ours = policy(tiny_model, LORA, "bfloat16")
    with ours.reference() as reference:
        assert reference is ours.model
    # Seven linear layers in each of two decoder layers, an A and a B each; neither the embedding nor the tied head.
    assert len(trained(ours)) == 2 * 7 * 2
    assert all("lora_" in name for name in trained(ours))
    assert {p.dtype for p in ours.model.parameters()} == {torch.bfloat16}
    # AdaLoRA keeps its rank in a parameter of its own, which must not train; its A, E and B are its own masters.
    ours = policy(tiny_model, ADALORA, "bfloat16")
    assert len(trained(ours)) == 2 * 7 * 3
    assert {p.dtype for p in trained(ours).values()} == {torch.float32}


@pytest.mark.parametrize("adapter", [None, LORA, RSLORA, ADALORA], ids=["full", "lora", "rslora", "adalora"])
def test_what_is_published_is_the_live_policy(tiny_model: Path, adapter: AdapterConfig | None) -> None:
    ours = policy(tiny_model, adapter)
    untouched = load_causal_lm(tiny_model, torch.float32, "eager")
    perturb(ours)
    live = logps(ours.model)
    published = ours.published()
    assert set(published) == set(untouched.state_dict()) - {"lm_head.weight"}  # tied to the embedding
    assert set(ours.initial()) == set(published)
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in ours.initial().items())
    copy = load_causal_lm(tiny_model, torch.float32, "eager")
    missing, unexpected = copy.load_state_dict(dict(published), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    torch.testing.assert_close(logps(copy), live, atol=1e-5, rtol=1e-6)
    assert torch.equal(logps(ours.model), live)  # publishing leaves the adapter alone


def test_the_update_is_rounded_once_and_the_base_is_not_worn_away(tiny_model: Path) -> None:
    ours = policy(tiny_model, LORA, "bfloat16")
    perturb(ours)
    name = "model.layers.0.self_attn.q_proj"
    a, b = (trained(ours)[f"{name}.lora_{side}.default.weight"].double() for side in "AB")
    base = ours.initial()[f"{name}.weight"].clone()
    by_hand = (base.double() + 8 / 4 * b @ a).to(torch.bfloat16)
    for _ in range(3):
        merged = ours.published()[f"{name}.weight"]
        assert merged.dtype == torch.bfloat16
        # Float32 sums may fall on the other side of a rounding boundary than exact ones, but rarely and by one step.
        assert (merged != by_hand).float().mean() < 0.01
        torch.testing.assert_close(merged, by_hand, rtol=2**-7, atol=1e-6)
    assert torch.equal(ours.initial()[f"{name}.weight"], base)
    with pytest.raises(KeyError):
        ours.published()["lm_head.weight"]


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_the_scale_by_hand(tiny_model: Path, use_rslora: bool, scale: float) -> None:
    ours = policy(tiny_model, dataclasses.replace(LORA, use_rslora=use_rslora))
    with torch.no_grad():
        for p in trained(ours).values():
            p.fill_(0.5)
    name = "model.layers.1.mlp.down_proj.weight"
    # Each entry of B A is 4 * 0.5 * 0.5 = 1.
    update = ours.published()[name] - ours.initial()[name]
    torch.testing.assert_close(update, torch.full_like(update, scale), atol=1e-5, rtol=0)


def test_the_orthogonality_term_by_hand(tiny_model: Path) -> None:
    ours = policy(tiny_model, dataclasses.replace(ADALORA, orth_reg_weight=0.5))
    with torch.no_grad():
        for name, p in trained(ours).items():
            # A A^T = 1, and B^T B = 4 * 1 with a distance |3 * 1| = 3 sqrt(4) = 6 from the identity of rank 4.
            p.copy_(torch.eye(*p.shape) * (2 if "lora_B" in name else 1))
    extra = ours.extra_loss()
    assert extra is not None and extra.item() == pytest.approx(0.5 * (0 + 6) / 2)
    extra.backward()
    assert policy(tiny_model, LORA).extra_loss() is None


def test_an_adapter_is_its_seed_and_the_random_state_stays(tiny_model: Path) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, same, other = (trained(policy(tiny_model, LORA, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_dropout_acts_only_where_a_gradient_is_taken(tiny_model: Path) -> None:
    ours = policy(tiny_model, dataclasses.replace(LORA, dropout=0.5))
    plain = policy(tiny_model, LORA)
    perturb(ours)
    perturb(plain)
    assert torch.equal(logps(ours.model), logps(plain.model))
    assert torch.equal(reference_logps(ours), reference_logps(plain))
    torch.manual_seed(0)
    drawn = [torch.cat(pair_logps(ours.model, ROWS)) for _ in range(2)]
    torch.manual_seed(0)
    assert torch.equal(torch.cat(pair_logps(ours.model, ROWS)), drawn[0])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("adapter", [None, dataclasses.replace(LORA, dropout=0.5)], ids=["full", "lora"])
def test_checkpointed_layers_run_twice_and_give_the_same_gradients(
    tiny_model: Path, adapter: AdapterConfig | None
) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        ours = policy(tiny_model, adapter, gradient_checkpointing=checkpointing)
        perturb(ours)
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        for layer in ours.model.model.layers:
            layer.mlp.register_forward_pre_hook(count)
        torch.manual_seed(0)
        chosen, rejected = pair_logps(ours.model, ROWS)
        (chosen - rejected).sum().backward()
        gradients.append({name: p.grad for name, p in trained(ours).items()})
        assert torch.equal(reference_logps(ours), logps(load_causal_lm(tiny_model, torch.float32, "eager")))
    # Two layers: once each forwards, once more backwards where checkpointed, and once for an adapter's reference,
    # which is the same model.
    once = 2 if adapter else 0
    assert calls == [2 + once, 4 + once]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient)


def test_a_saved_adapter_loads_as_a_plain_model_and_by_peft(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    ours = policy(tiny_model, LORA)
    perturb(ours)
    ours.save(tmp_path)
    live = logps(ours.model)
    torch.testing.assert_close(logps(load_causal_lm(tmp_path, torch.float32, "eager")), live, atol=1e-5, rtol=1e-6)
    base = load_causal_lm(tiny_model, torch.float32, "eager")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).get_base_model()
    torch.testing.assert_close(logps(adapted), live, atol=1e-5, rtol=1e-6)


def test_targets_can_be_named(tiny_model: Path, tmp_path: Path) -> None:
    ours = policy(tiny_model, dataclasses.replace(LORA, target_modules=("q_proj", "layers.1.mlp.up_proj")))
    assert isinstance(ours, AdapterPolicy)
    assert len(trained(ours)) == 2 * (2 + 1)
    ours.save(tmp_path)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(saved["target_modules"]) == ["layers.1.mlp.up_proj", "q_proj"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm_head", "'lm_head' is the embedding or the head"),
        ("embed_tokens", "'embed_tokens' is the embedding or the head"),
        ("q_projection", "no linear layer called 'q_projection'"),
        ("input_layernorm", "no linear layer called 'input_layernorm'"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tiny_model: Path, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(tiny_model, dataclasses.replace(LORA, target_modules=("q_proj", target)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"target_modules": "q_proj"}, "all-linear or a list of names, not 'q_proj'"),
        ({"type": "adalora", "total_step": 9, "use_rslora": True}, "leave use_rslora out"),
        ({"type": "adalora", "total_step": 9, "target_rank": 12}, "1 <= target_rank < init_rank, not 12 and 12"),
        ({"type": "adalora"}, "0 <= tinit < total_step - tfinal"),
        ({"type": "adalora", "total_step": 9, "tinit": 4, "tfinal": 5}, "0 <= tinit < total_step - tfinal"),
        ({"type": "adalora", "total_step": 9, "delta_t": 0}, "delta_t >= 1"),
    ],
)
def test_impossible_adapters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**changes)
