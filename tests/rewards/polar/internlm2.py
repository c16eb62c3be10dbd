"""A tiny random official checkpoint: InternLM2ForRewardModel in plain PyTorch, and a sentencepiece tokenizer.

The forward pass follows the public ``modeling_internlm2.py`` (InternLM/xtuner): queries, keys and values in one matrix
grouped by key head, rotary positions counted from the first column, the score read at the last position of the mask.
"""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

SEPARATOR, SCORE_TOKEN = "<|reward|>", "[UNUSED_TOKEN_130]"
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "def main():\n    return  'two  spaces'\n\n\n",
    "What is the capital of China? Beijing. Shanghai.",
    "  leading and trailing  ",
    "naïve café, größer, 漢字 仮名",
    "the theory of the other thing, then there",
]
SYMBOLS = ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_129]", SCORE_TOKEN, "[UNUSED_TOKEN_145]"]


def config(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "reward_token_id": 5,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 50000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 448,
    }
    return settings | changes


def weights(settings: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights that make attention neither flat nor certain."""
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]
    rows = hidden + 2 * settings["num_key_value_heads"] * hidden // settings["num_attention_heads"]
    shapes = {"model.tok_embeddings.weight": (settings["vocab_size"], hidden), "v_head.weight": (1, hidden)}
    for layer in range(settings["num_hidden_layers"]):
        for name, shape in {
            "attention.wqkv": (rows, hidden),
            "attention.wo": (hidden, hidden),
            "feed_forward.w1": (inner, hidden),
            "feed_forward.w2": (hidden, inner),
            "feed_forward.w3": (inner, hidden),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    norms = ["model.norm.weight"] + [
        f"model.layers.{layer}.{name}.weight"
        for layer in range(settings["num_hidden_layers"])
        for name in ("attention_norm", "ffn_norm")
    ]
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["v_head.weight"] *= 0.2  # scores of order 1, for absolute tolerances
    state |= {name: 1 + 0.2 * torch.randn(hidden, generator=generator) for name in norms}
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def scores(state: State, settings: Mapping[str, Any], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The raw scores [B] of token ids [B, L] with their attention mask [B, L]."""
    hidden = state["model.tok_embeddings.weight"][ids]
    cos, sin = _rotary(settings, ids.shape[1])
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    allowed = causal[None, None] & mask[:, None, None, :].bool()
    for layer in range(settings["num_hidden_layers"]):
        block = {name.split(".", 3)[3]: tensor for name, tensor in state.items() if f".layers.{layer}." in name}
        normed = _rms(hidden, block["attention_norm.weight"], settings["rms_norm_eps"])
        hidden = hidden + _attention(normed, block, settings, cos, sin, allowed)
        normed = _rms(hidden, block["ffn_norm.weight"], settings["rms_norm_eps"])
        gate = torch.nn.functional.silu(normed @ block["feed_forward.w1.weight"].T)
        hidden = hidden + (gate * (normed @ block["feed_forward.w3.weight"].T)) @ block["feed_forward.w2.weight"].T
    values = _rms(hidden, state["model.norm.weight"], settings["rms_norm_eps"]) @ state["v_head.weight"].T
    ends = mask.cumsum(dim=1).argmax(dim=1)
    return values[torch.arange(len(ids)), ends, 0]


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _rotary(settings: Mapping[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    head = settings["hidden_size"] // settings["num_attention_heads"]
    base, scaling = float(settings["rope_theta"]), settings["rope_scaling"] or {"type": "none"}
    positions = torch.arange(length).float()
    if scaling["type"] == "linear":
        positions = positions / scaling["factor"]
    limit = settings["max_position_embeddings"]
    if scaling["type"] == "dynamic" and length > limit:
        base *= (scaling["factor"] * length / limit - (scaling["factor"] - 1)) ** (head / (head - 2))
    angles = positions[:, None] / base ** (torch.arange(0, head, 2).float() / head)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _attention(
    x: torch.Tensor,
    block: State,
    settings: Mapping[str, Any],
    cos: torch.Tensor,
    sin: torch.Tensor,
    allowed: torch.Tensor,
) -> torch.Tensor:
    heads, key_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    batch, length, hidden = x.shape
    grouped = (x @ block["attention.wqkv.weight"].T).view(batch, length, key_heads, heads // key_heads + 2, -1)
    queries = grouped[..., :-2, :].reshape(batch, length, heads, -1).transpose(1, 2)
    keys, values = (grouped[..., at, :].repeat_interleave(heads // key_heads, dim=2).transpose(1, 2) for at in (-2, -1))

    def rotate(y: torch.Tensor) -> torch.Tensor:
        left, right = y.chunk(2, dim=-1)
        return y * cos + torch.cat((-right, left), dim=-1) * sin

    logits = rotate(queries) @ rotate(keys).transpose(2, 3) / math.sqrt(hidden // heads)
    weights = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1)
    return (weights @ values).transpose(1, 2).reshape(batch, length, hidden) @ block["attention.wo.weight"].T


def sentencepiece_model(*, dummy_prefix: bool = False, symbol_type: int = 4, **changes: Any) -> bytes:
    """A tiny BPE model with byte fallback; ``symbol_type`` is that of the unused pieces (4 user-defined, 1 normal)."""
    from transformers.convert_slow_tokenizer import import_protobuf

    written = io.BytesIO()
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": dummy_prefix,
        "user_defined_symbols": SYMBOLS,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=written, **(options | changes)
    )
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(written.getvalue())
    for piece in proto.pieces:
        if piece.piece in SYMBOLS:
            piece.type = symbol_type
    return bytes(proto.SerializeToString())


def tokenizer_config(**slots: str) -> dict[str, Any]:
    """As in the official repositories: names of the tokens that took a slot, by id."""
    names = {"0": "<unk>", "1": "<s>", "2": "</s>"} | (slots or {"3": SEPARATOR, "6": "<|im_end|>"})
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {index: {"content": name, **flags} for index, name in names.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "InternLM2Tokenizer",
    }


def write(
    folder: Path,
    state: State,
    settings: Mapping[str, Any],
    layout: str = "safetensors",
    spm: bytes | None = None,
    tokenizer_settings: Mapping[str, Any] | None = None,
) -> Path:
    """An official folder; ``layout``: safetensors, safetensors in three shards, bin, bin in three shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings or tokenizer_config()))
    (folder / "tokenizer.model").write_bytes(spm or sentencepiece_model())
    kind, _, shards = layout.partition(" ")
    names = sorted(state)
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    count = 3 if shards else 1
    weight_map = {}
    for at in range(count):
        part = {name: state[name].contiguous() for name in names[at::count]}
        file = stem if count == 1 else f"{stem.split('.')[0]}-{at + 1:05}-of-{count:05}.{stem.split('.')[1]}"
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards:
        (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
