"""Policy discriminators as folders: what is built, what survives saving, and how a name becomes one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR
from rewards.polar.model import (
    NEW_ROW_SPREAD,
    PolarSettings,
    build_polar,
    load_encoder,
    load_polar,
    polar_settings,
    resolve_polar,
)
from rewards.polar.shipped import ADAPTER_CONFIG, ADAPTER_FILE, BASE_FILE, describe, ship
from rewards.polar.types import PolarError
from rollouts.models import load_causal_lm, load_tokenizer


@pytest.fixture(scope="module")
def polar(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_polar(tiny_model, tmp_path_factory.mktemp("polar") / "tiny")


def test_the_body_is_the_backbones_and_the_head_is_zero(tiny_model: Path, polar: Path) -> None:
    backbone, built = load_causal_lm(tiny_model, torch.float32), load_polar(polar, torch.float32)
    ids = torch.tensor([[5, 9, 30, 31, 7]])
    with torch.no_grad():
        expected = backbone.model(input_ids=ids).last_hidden_state
        assert torch.equal(built.model(input_ids=ids).last_hidden_state, expected)
        assert built(input_ids=ids).logits.tolist() == [[0.0]]
    saved = load_file(polar / "model.safetensors")
    assert saved["score.weight"].shape == (1, 64) and not saved["score.weight"].any()
    assert not any("lm_head" in name or "score.bias" in name for name in saved)


def test_both_special_tokens_are_added_once_and_stay_single_tokens(tiny_model: Path, polar: Path) -> None:
    before, after = load_tokenizer(tiny_model), load_tokenizer(polar)
    ids = [after.convert_tokens_to_ids(token) for token in (SEPARATOR, SCORE_TOKEN)]
    assert ids == [len(before), len(before) + 1] and len(after) == len(before) + 2
    assert after.encode(f"a{SEPARATOR}b{SCORE_TOKEN}", add_special_tokens=False) == [
        *before.encode("a", add_special_tokens=False), ids[0], *before.encode("b", add_special_tokens=False), ids[1],
    ]  # fmt: skip
    config = json.loads((polar / "config.json").read_text())
    assert config["vocab_size"] == len(after) and config["pad_token_id"] == after.pad_token_id
    assert config["architectures"] == ["LlamaForSequenceClassification"]


def test_new_rows_are_near_the_mean_and_differ(tiny_model: Path, polar: Path) -> None:
    rows = load_file(polar / "model.safetensors")["model.embed_tokens.weight"]
    deviation, mean = torch.std_mean(rows[:-2], dim=0)
    for row in rows[-2:]:
        away = (row - mean) / (NEW_ROW_SPREAD * deviation)
        # 64 standard normal numbers: none is beyond 5, and their spread is 1 within 0.3.
        assert away.abs().max() < 5 and abs(float(away.std()) - 1) < 0.3
    assert not torch.allclose(rows[-1], rows[-2], atol=1e-3)


def test_a_seed_makes_the_same_rows_and_another_seed_others(tiny_model: Path, polar: Path, tmp_path: Path) -> None:
    same = build_polar(tiny_model, tmp_path / "same")
    other = build_polar(tiny_model, tmp_path / "other", seed=1)
    one, two, three = (load_file(folder / "model.safetensors") for folder in (polar, same, other))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert [name for name, tensor in one.items() if not torch.equal(tensor, three[name])] == [
        "model.embed_tokens.weight"
    ]


def test_tokens_that_are_there_keep_their_rows(polar: Path, tmp_path: Path) -> None:
    """A model that has both, as InternLM's do, is built upon without touching the vocabulary."""
    from transformers import LlamaForCausalLM

    model = load_polar(polar, torch.float32)
    causal = LlamaForCausalLM(model.config)  # type: ignore[no-untyped-call]
    causal.model.load_state_dict(model.model.state_dict())
    causal.save_pretrained(tmp_path / "causal")
    load_tokenizer(polar).save_pretrained(tmp_path / "causal")
    again = build_polar(tmp_path / "causal", tmp_path / "again", seed=7)
    rows = [load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in (polar, again)]
    assert torch.equal(rows[0], rows[1])
    assert len(load_tokenizer(again)) == len(load_tokenizer(polar))


def test_only_the_first_layers_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    built = load_polar(build_polar(tiny_model, tmp_path / "one", layers=1), torch.float32)
    backbone = load_causal_lm(tiny_model, torch.float32)
    ids = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        # hidden_states[1] is what the second layer is given: the first layer's output before the final norm.
        states = backbone.model(input_ids=ids, output_hidden_states=True).hidden_states
        assert torch.allclose(built.model(input_ids=ids).last_hidden_state, backbone.model.norm(states[1]), atol=1e-6)
    assert len(built.model.layers) == built.config.num_hidden_layers == 1


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_backbone_has_not_are_refused(tiny_model: Path, tmp_path: Path, layers: int) -> None:
    with pytest.raises(PolarError, match=r"has 2 layers: keep 1 to so many"):
        build_polar(tiny_model, tmp_path / "bad", layers=layers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "response", "positions", "fitted"),
    [
        (16384, 4096, 32768, (16384, 4096)),
        (16384, 4096, 8192, (8192, 2047)),  # (8192 - 4) / 4
        (16384, 4096, 512, (512, 127)),
        (300, 100, 512, (300, 100)),
        (204, 100, 512, (204, 50)),  # 2 * 100 + 4 leaves nothing for the prompt
    ],
)
def test_lengths_are_fitted_to_the_positions(
    length: int, response: int, positions: int, fitted: tuple[int, int]
) -> None:
    found = PolarSettings(max_length=length, max_response_length=response).fitted(positions)
    assert (found.max_length, found.max_response_length) == fitted


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(PolarError, match="no room for two responses"):
        PolarSettings(max_length=7).fitted(512)


def test_settings_are_read_from_the_folder(tiny_model: Path, polar: Path, tmp_path: Path) -> None:
    assert polar_settings(polar) == PolarSettings(SEPARATOR, SCORE_TOKEN, 512, 127)
    with pytest.raises(PolarError, match=r"no key 'polar' with max_length.*align polar convert"):
        polar_settings(tiny_model)
    with pytest.raises(PolarError, match=r"no readable config\.json"):
        polar_settings(tmp_path)


def test_an_existing_folder_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PolarError, match="exists: remove it"):
        build_polar(tiny_model, tmp_path)


def test_the_head_keeps_float32_in_a_bfloat16_model(polar: Path, tmp_path: Path) -> None:
    """1 + 2^-12 is not a bfloat16 number: it survives only where nothing rounds it."""
    tensors = load_file(polar / "model.safetensors")
    tensors["score.weight"] = torch.full((1, 64), 1 + 2**-12)
    folder = copied(polar, tmp_path / "exact")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_polar(folder, torch.bfloat16)
    assert model.score.weight.dtype == torch.float32
    assert model.score.weight[0, 0].item() == 1 + 2**-12
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 30]])
        hidden = model.model(input_ids=ids).last_hidden_state[:, -1].float()
        scores = model(input_ids=ids).logits
    assert scores.dtype == torch.float32
    assert float(scores) == pytest.approx(float(hidden.sum()) * (1 + 2**-12), rel=1e-5)


def test_the_encoder_ends_with_the_models_own_score_token(polar: Path) -> None:
    ids = load_encoder(polar).encode("ask", "one", "two")
    tokenizer = load_tokenizer(polar)
    assert ids[-1] == tokenizer.convert_tokens_to_ids(SCORE_TOKEN)
    assert ids.count(tokenizer.convert_tokens_to_ids(SEPARATOR)) == 1


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def adapter_of(model: Path, folder: Path, rank: int = 2) -> Any:
    """A random adapter on a policy discriminator, with its head and token rows; returns the model with it."""
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(model)
    rows = sorted(tokenizer.convert_tokens_to_ids(token) for token in (SEPARATOR, SCORE_TOKEN))
    config = LoraConfig(
        r=rank,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        trainable_token_indices={"embed_tokens": rows},
    )
    adapted = get_peft_model(load_polar(model, torch.float32), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                # Representable in bfloat16, so that shipping is exact but for the merge.
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(torch.bfloat16).float())
    adapted.save_pretrained(folder, save_embedding_layers=False)
    describe(folder, polar_settings(model), adapted.config.num_hidden_layers)
    return adapted


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache with ``tiny:0``, and a discriminator of one layer built on it."""
    from rollouts.models import resolve

    cache = tmp_path_factory.mktemp("cache")
    backbone = resolve("tiny:0", cache)
    return cache, build_polar(backbone, cache / "start", layers=1, seed=5, max_response_length=50)


def test_what_is_shipped_becomes_the_trained_model_again(base: tuple[Path, Path], tmp_path: Path) -> None:
    cache, start = base
    trained = adapter_of(start, tmp_path / "adapter")
    ship(tmp_path / "adapter", tmp_path / "weights" / "mine", base="tiny:0")
    shipped = tmp_path / "weights" / "mine"
    assert {file.name for file in shipped.iterdir()} == {ADAPTER_FILE, ADAPTER_CONFIG, BASE_FILE}
    # No path of the machine that trained it.
    assert not any(str(tmp_path) in file.read_text() for file in shipped.glob("*.json"))
    dtypes = {n: t.dtype for n, t in load_file(shipped / ADAPTER_FILE).items()}
    assert {t for n, t in dtypes.items() if "score" not in n} == {torch.bfloat16}
    assert {t for n, t in dtypes.items() if "score" in n} == {torch.float32}

    folder = resolve_polar("polar:mine", cache, tmp_path / "weights")
    assert polar_settings(folder) == polar_settings(start)
    model, expected = load_polar(folder, torch.float32), trained.merge_and_unload()
    for (name, one), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.allclose(one, other, rtol=2**-8, atol=1e-6), name
    assert torch.equal(model.score.weight, expected.score.weight)
    # Made once: the same folder, not made again.
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert resolve_polar("polar:mine", cache, tmp_path / "weights") == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp


def test_what_cannot_be_shipped_is_said(
    base: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_of(base[1], tmp_path / "adapter")
    with pytest.raises(PolarError, match=r"names no backbone that others have"):
        ship(tmp_path / "adapter", tmp_path / "x", base="/home/me/model")
    with pytest.raises(PolarError, match=r"has no adapter_model\.safetensors"):
        ship(tmp_path, tmp_path / "x", base="tiny:0")
    monkeypatch.setattr("rewards.polar.shipped.MAX_BYTES", 1000)
    with pytest.raises(PolarError, match=r"MB of weights, more than .* lower rank"):
        ship(tmp_path / "adapter", tmp_path / "x", base="tiny:0")
    assert not (tmp_path / "x").exists()


def test_another_vocabulary_under_an_adapter_is_refused(base: tuple[Path, Path], tmp_path: Path) -> None:
    adapter_of(base[1], tmp_path / "adapter")
    shipped = ship(tmp_path / "adapter", tmp_path / "weights" / "mine", base="tiny:0")
    config = json.loads((shipped / ADAPTER_CONFIG).read_text())
    config["trainable_token_indices"]["embed_tokens"] = [3, 4]
    (shipped / ADAPTER_CONFIG).write_text(json.dumps(config))
    with pytest.raises(PolarError, match=r"not the one that the adapter was trained with"):
        resolve_polar("polar:mine", base[0], tmp_path / "weights")


def test_names_are_resolved_or_refused(polar: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert resolve_polar(str(polar)) == polar.resolve()
    for name, message in {
        str(tiny_model): "no key 'polar'",
        str(tmp_path / "absent"): "no such folder",
        "polar:absent": "no such policy discriminator",
        "polar:../secrets": "NAME has letters",
        "poler:x": "unknown prefix",
    }.items():
        with pytest.raises(PolarError, match=message):
            resolve_polar(name, tmp_path, tmp_path)
