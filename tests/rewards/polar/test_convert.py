"""Conversion of official checkpoints: the same scores, the same tokens, and refusals that say what is wrong."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import sentencepiece
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from rewards.polar import convert as module
from rewards.polar.convert import convert
from rewards.polar.convert_tokenizer import fast_tokenizer
from rewards.polar.encoding import PolarEncoder
from rewards.polar.golden import POLAR_7B, GoldenPair, GoldenResult, golden
from rewards.polar.types import PolarError, PolarItem
from tests.rewards.polar import internlm2

PAD = 2


def load(folder: Path, dtype: str = "float32") -> Any:
    return AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=dtype).eval()


@pytest.fixture(scope="module")
def spm() -> bytes:
    return internlm2.sentencepiece_model()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, spm: bytes) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    settings = internlm2.config()
    source = internlm2.write(folder / "official", internlm2.weights(settings), settings, spm=spm)
    return convert(source, folder / "ours")


def batch(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    padded, masks = [], []
    for row in rows:
        gap = width - len(row)
        padded.append([PAD] * gap + row if left else row + [PAD] * gap)
        masks.append([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)
    return torch.tensor(padded), torch.tensor(masks)


def assert_parity(folder: Path, state: internlm2.State, settings: dict[str, Any]) -> None:
    encoder = PolarEncoder(AutoTokenizer.from_pretrained(str(folder)), max_length=512)
    rows = [
        encoder.encode("What is the capital of China?", "Beijing.", output)
        for output in ("Beijing.", "Shanghai, a city by the sea, which is large", "")
    ]
    generator = torch.Generator().manual_seed(3)
    rows.append(torch.randint(3, settings["vocab_size"], (70,), generator=generator).tolist())
    model = load(folder)
    single = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            theirs = internlm2.scores(state, settings, ids, torch.ones_like(ids))
            ours = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
            single.append(theirs)
        assert torch.stack(single).std() > 0.05, "the weights must make scores that differ"
        for left in (False, True):
            ids, mask = batch(rows, left)
            ours = model(input_ids=ids, attention_mask=mask).logits[:, 0]
            torch.testing.assert_close(ours, internlm2.scores(state, settings, ids, mask), atol=1e-5, rtol=0)
            torch.testing.assert_close(ours, torch.cat(single), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["safetensors", "safetensors sharded", "bin", "bin sharded"])
def test_scores_are_the_same(layout: str, spm: bytes, tmp_path: Path) -> None:
    settings = internlm2.config()
    state = internlm2.weights(settings)
    assert_parity(
        convert(internlm2.write(tmp_path / "a", state, settings, layout, spm), tmp_path / "b"), state, settings
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 10000},
        {"rms_norm_eps": 0.5},
    ],
)
def test_scores_are_the_same_in_every_form_of_the_architecture(
    changes: dict[str, Any], spm: bytes, tmp_path: Path
) -> None:
    settings = internlm2.config(**changes)
    state = internlm2.weights(settings, seed=1)
    assert_parity(convert(internlm2.write(tmp_path / "a", state, settings, spm=spm), tmp_path / "b"), state, settings)


def test_what_a_converted_folder_holds(converted: Path) -> None:
    config = AutoConfig.from_pretrained(str(converted))
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert (config.num_labels, config.pad_token_id, config.vocab_size) == (1, 2, 448)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e7}
    assert (config.rms_norm_eps, config.max_position_embeddings) == (1e-5, 512)
    assert json.loads((converted / "config.json").read_text())["polar"] == {
        "separator": "<|reward|>",
        "score_token": "[UNUSED_TOKEN_130]",
        "max_length": 512,
        "max_response_length": 4096,
    }
    assert isinstance(load(converted), LlamaForSequenceClassification)
    assert not list(converted.glob("*.py")), "no code from the checkpoint"
    assert "auto_map" not in (converted / "tokenizer_config.json").read_text()
    encoder = PolarEncoder(AutoTokenizer.from_pretrained(str(converted)))
    assert (encoder.separator_id, encoder.score_id) == (3, 5)
    assert encoder.encode("Q", "a", "b")[0] == 1


@pytest.mark.parametrize("layout", ["safetensors", "bin sharded"])
def test_types_of_tensors_are_kept_and_shards_stay_small(
    layout: str, spm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 16 * 1024)
    settings = internlm2.config()
    state = internlm2.weights(settings, dtype=torch.float16)
    folder = convert(internlm2.write(tmp_path / "a", state, settings, layout, spm), tmp_path / "b")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    largest = max(tensor.numel() * 2 for tensor in state.values())
    for file in files:
        assert file.stat().st_size < max(16 * 1024, largest) + 4096
        with safe_open(str(file), framework="pt") as handle:
            assert {handle.get_tensor(name).dtype for name in handle.keys()} == {torch.float16}  # noqa: SIM118
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 2 for tensor in state.values())
    model = load(folder, "auto")
    assert model.dtype == torch.float16
    wqkv = state["model.layers.1.attention.wqkv.weight"].view(2, 4, 8, 32)
    attention = model.model.layers[1].self_attn
    assert torch.equal(attention.q_proj.weight, wqkv[:, :2].reshape(32, 32))
    assert torch.equal(attention.k_proj.weight, wqkv[:, 2].reshape(16, 32))
    assert torch.equal(attention.v_proj.weight, wqkv[:, 3].reshape(16, 32))
    assert torch.equal(model.score.weight, state["v_head.weight"])


texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            [
                "the",
                "quick",
                " ",
                "  ",
                "\n",
                "\t",
                "漢",
                "字",
                "\U0001f600",
                "é",
                "▁",
                "cap",
                "ital",
                "China?",
                "[UNUSED",
            ]
        ),
        max_size=20,
    ).map("".join),
)


@pytest.fixture(scope="module", params=[(False, 4), (False, 1), (True, 4)], ids=["plain", "normal pieces", "prefix"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[sentencepiece.SentencePieceProcessor, Any]:
    """sentencepiece's own processor, and the tokenizer that was made of the same file."""
    dummy_prefix, symbol_type = request.param
    content = internlm2.sentencepiece_model(dummy_prefix=dummy_prefix, symbol_type=symbol_type)
    folder = tmp_path_factory.mktemp("spm")
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(internlm2.tokenizer_config()))
    made = fast_tokenizer(folder, 448, 5)
    made.save_pretrained(folder / "saved")
    return sentencepiece.SentencePieceProcessor(model_proto=content), AutoTokenizer.from_pretrained(folder / "saved")


@given(text=texts)
@example(text="  leading")
@example(text="a\n\n  b \n")
@example(text="naïve 漢字 \U0001f469\u200d\U0001f9b0 ﷺ")
@example(text="[UNUSED_TOKEN_129] and [UNUSED_TOKEN_129]")
def test_tokens_are_those_of_sentencepiece(both: tuple[Any, Any], text: str) -> None:
    processor, tokenizer = both
    if any(literal in text for literal in tokenizer.all_special_tokens) or "\x00" in text:
        return
    if tokenizer(" ").input_ids != tokenizer(" ").input_ids[:2] and "[UNUSED_TOKEN_129]" in text:
        return  # every stretch of text gets the prefix, and sentencepiece gives it to the first alone
    assert tokenizer(text, add_special_tokens=False).input_ids == processor.encode(text)
    assert tokenizer(text).input_ids == [1, *processor.encode(text)]
    assert tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text))


def test_special_tokens_are_found_in_text(both: tuple[Any, Any]) -> None:
    _, tokenizer = both
    assert tokenizer("<|reward|>[UNUSED_TOKEN_130]<|im_end|>").input_ids == [1, 3, 5, 6]
    assert tokenizer.convert_tokens_to_ids("[UNUSED_TOKEN_0]") in (None, 0), "its slot was taken"
    assert PolarEncoder(tokenizer).render("<|im_end|>Q", "a</s>", "<s>b") == "Q\na<|reward|>Q\nb[UNUSED_TOKEN_130]"


def test_a_symbol_with_a_space_is_found_as_sentencepiece_finds_it(tmp_path: Path) -> None:
    content = internlm2.sentencepiece_model(user_defined_symbols=[*internlm2.SYMBOLS, "▁▁", "a▁b"])
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(internlm2.tokenizer_config()))
    tokenizer = fast_tokenizer(tmp_path, 448, 5)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in ("a b", "x  y", "   ", "the  a bc   d"):
        assert tokenizer(text, add_special_tokens=False).input_ids == processor.encode(text)


def test_tokenizer_json_is_preferred_and_its_slots_are_renamed(spm: bytes, tmp_path: Path) -> None:
    # The file of the base model: the separator's slot still has its old name, and the score token is no special token.
    settings = internlm2.config()
    source = internlm2.write(tmp_path / "a", internlm2.weights(settings), settings, spm=spm)
    base = internlm2.tokenizer_config(**{"6": "<|im_end|>", "3": "<|reward|>"})
    made = fast_tokenizer(source, 448, 5)
    content = json.loads(made.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["[UNUSED_TOKEN_0]"] = vocabulary.pop("<|reward|>")
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] not in (3, 5)]
    content["added_tokens"].append({**content["added_tokens"][0], "id": 3, "content": "[UNUSED_TOKEN_0]"})
    content["post_processor"] = None
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(content))
    (source / "tokenizer_config.json").write_text(json.dumps(base))
    (source / "tokenizer.model").unlink()
    folder = convert(source, tmp_path / "b")
    ours = PolarEncoder(AutoTokenizer.from_pretrained(str(folder)))
    assert ours.encode("the capital", "Beijing.", "of") == PolarEncoder(made).encode("the capital", "Beijing.", "of")
    assert (ours.separator_id, ours.score_id) == (3, 5)


def refused(source: Path, message: str) -> None:
    target = source.parent / "target"
    with pytest.raises(PolarError, match=message) as caught:
        convert(source, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name]


@pytest.fixture
def official(tmp_path: Path, spm: bytes) -> Path:
    settings = internlm2.config()
    return internlm2.write(tmp_path / "official", internlm2.weights(settings), settings, spm=spm)


def test_the_tokenizer_of_an_older_reward_model_is_refused(official: Path) -> None:
    settings = internlm2.tokenizer_config(**{"5": "<|reward|>"})
    (official / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(official, r"calls the score token \(5\) '<\|reward\|>'.*older InternLM2 reward model; take the tokenizer")


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"4": "<|reward|>", "5": "<|plugin|>"}, "have the ids 4 and None, and the model of 448 tokens wants 4 and 5"),
        ({"6": "<|im_end|>"}, "have the ids None and 5"),
        (
            {"3": "<|reward|>", "900": "<|plugin|>"},
            r"gives '<\|plugin\|>' the id 420, and its tokenizer_config.json 900",
        ),
    ],
)
def test_tokenizers_without_polars_tokens_are_refused(slots: dict[str, str], message: str, official: Path) -> None:
    (official / "tokenizer_config.json").write_text(json.dumps(internlm2.tokenizer_config(**slots)))
    refused(official, message)


def test_the_real_vocabulary_must_have_the_released_ids(official: Path) -> None:
    with pytest.raises(PolarError, match="have the ids 3 and 5, and the model of 92544 tokens wants 92397 and 92527"):
        fast_tokenizer(official, 92544, 92527)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["InternLM2ForCausalLM"]}, "is a InternLM2ForCausalLM; only InternLM2ForRewardModel"),
        ({"architectures": None}, "is a none; only InternLM2ForRewardModel"),
        ({"bias": True}, "has biases, which no released POLAR model has"),
        ({"rms_norm_eps": None, "rope_theta": None}, "config.json' lacks rms_norm_eps, rope_theta; download it again"),
        ({"hidden_act": "gelu"}, "has activation 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "has rope scaling 'yarn'"),
        ({"num_hidden_layers": 4}, r"lacks tensors: model.layers.3.attention.wo.weight, .* and 4 more"),
        ({"num_hidden_layers": 2}, r"has unknown tensors: model.layers.2.attention.wo.weight, .* and 4 more"),
        ({"num_key_value_heads": 4}, r"'model.layers.0.attention.wqkv.weight' has shape \[64, 32\].*\[96, 32\]"),
        ({"reward_token_id": 4}, "have the ids 3 and 5, and the model of 448 tokens wants 3 and 4"),
    ],
)
def test_other_models_are_refused(changes: dict[str, Any], message: str, official: Path) -> None:
    (official / "config.json").write_text(json.dumps(internlm2.config(**changes)))
    refused(official, message)


def test_incomplete_folders_are_refused(official: Path) -> None:
    tokenizer = (official / "tokenizer.model").read_bytes()
    (official / "tokenizer.model").write_bytes(b"\xff\xff\xff")
    refused(official, "is no sentencepiece model; download it again")
    (official / "tokenizer.model").unlink()
    refused(official, "has neither tokenizer.json nor tokenizer.model")
    (official / "tokenizer.json").write_text("{}")
    refused(official, "holds no BPE vocabulary")
    (official / "tokenizer.json").unlink()
    (official / "tokenizer.model").write_bytes(tokenizer)

    weights = (official / "model.safetensors").read_bytes()
    (official / "model.safetensors").write_bytes(weights[:-8])
    refused(official, "is truncated: .* download it again")
    (official / "model.safetensors").unlink()
    refused(official, "has neither model.safetensors nor pytorch_model.bin")
    (official / "pytorch_model.bin").write_bytes(b"no weights")
    refused(official, "pytorch_model.bin' cannot be read as PyTorch weights")
    index = {"weight_map": {"v_head.weight": "model-00001-of-00002.safetensors"}}
    (official / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(official, "lacks model-00001-of-00002.safetensors")
    (official / "config.json").write_text("{")
    refused(official, "cannot be read as JSON")
    (official / "config.json").unlink()
    refused(official, "has no config.json; give the folder of an official POLAR checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 320}, "is no BPE model with byte fallback"),
        ({"byte_fallback": False, "vocab_size": 100}, "is no BPE model with byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites text before it splits it"),
        ({"remove_extra_whitespaces": True}, "rewrites text before it splits it"),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused(options: dict[str, Any], message: str, official: Path) -> None:
    (official / "tokenizer.model").write_bytes(internlm2.sentencepiece_model(**options))
    refused(official, message)


def test_a_folder_that_exists_is_left_alone(official: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(PolarError, match="exists already; remove it, or choose another folder"):
        convert(official, target)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing_behind(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_llama_config", full)
    refused(official, "cannot be written: .*No space left on device; free some space or choose another folder")


def test_an_interrupt_leaves_nothing_behind(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_llama_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(official, official.parent / "target")
    assert [path.name for path in official.parent.iterdir()] == ["official"]


def test_golden_scores_are_compared_through_our_encoder(converted: Path) -> None:
    settings = internlm2.config()
    state = internlm2.weights(settings)
    tokenizer = AutoTokenizer.from_pretrained(str(converted))
    text = "What is the capital of China?\nBeijing.<|reward|>What is the capital of China?\nShanghai.[UNUSED_TOKEN_130]"
    ids = tokenizer(text, return_tensors="pt").input_ids
    score = internlm2.scores(state, settings, ids, torch.ones_like(ids)).item()
    item = POLAR_7B[1].item
    right, close, wrong = golden(converted, [GoldenPair(item, score + shift) for shift in (0.0, -0.04, 0.06)])
    assert right.score == pytest.approx(score, abs=1e-5)
    assert (right.agrees, close.agrees, wrong.agrees) == (True, True, False)
    assert not GoldenResult(item, 0.0, float("nan")).agrees
    assert not any(result.agrees for result in golden(converted)), "random weights are not POLAR-7B"


def test_golden_scores_need_a_polar_folder(official: Path) -> None:
    with pytest.raises(PolarError, match="run 'align polar convert'"):
        golden(official)


def test_the_published_pairs() -> None:
    assert [pair.expected for pair in POLAR_7B] == [-0.5702977776527405, -11.030370712280273]
    items: list[PolarItem] = [pair.item for pair in POLAR_7B]
    assert [[m.content for m in item.output] for item in items] == [["Beijing."], ["Shanghai."]]  # type: ignore[union-attr]
    assert {item.wrapper for item in items} == {"sft"}
