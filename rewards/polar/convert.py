"""Official POLAR checkpoints as ordinary Llama classifiers, which need no code from the checkpoint.

InternLM2 is Llama with other names: its attention keeps queries, keys and values in one matrix, grouped by key head.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rewards.polar.convert_tokenizer import fast_tokenizer, read_json
from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR, PolarEncoder
from rewards.polar.types import PolarError
from rollouts.engines.weight_files import file_shapes, tensors

if TYPE_CHECKING:
    import torch

ARCHITECTURE: Final = "InternLM2ForRewardModel"
MAX_LENGTH, MAX_RESPONSE_LENGTH = 16384, 4096  # tokens; what the released models were fine-tuned with
SHARD_BYTES: Final = 2 * 2**30
_SCORE_ID: Final = 92527  # of the released models; the default of InternLM2's configuration class
_COPIED: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

_OUTER: Final = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "v_head.weight": "score.weight",
}
_INNER: Final = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_WQKV: Final = "attention.wqkv.weight"
_QKV: Final = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


def convert(source: Path, target: Path) -> Path:
    """Turns an official checkpoint (``internlm/POLAR-7B``, ``POLAR-1_8B``, ``-Base``) into a POLAR model folder.

    ``source`` holds ``config.json``, safetensors or ``.bin`` weights and the tokenizer's files. ``target``, a folder
    that does not exist yet, becomes a ``LlamaForSequenceClassification`` with the same weights in the same types and a
    fast tokenizer: the same scores without ``trust_remote_code``. Weights go through memory 2 GiB at a time, and the
    folder appears whole or not at all.

    A ``dynamic`` rope scaling is left out: it changes nothing up to ``max_position_embeddings`` (262,144 tokens in
    POLAR-7B), beyond which no converted model reads, and some servers apply it to every length.

    Raises :class:`PolarError` when ``source`` is of another architecture, is incomplete, or carries the tokenizer of an
    older InternLM2 reward model.
    """
    from safetensors import SafetensorError

    config = _config(source)
    if target.exists():
        raise PolarError(f"'{target}' exists already; remove it, or choose another folder")
    files = _weight_files(source)
    _check_weights(files, _expected(config))
    score_id = config.get("reward_token_id", _SCORE_ID)
    tokenizer = fast_tokenizer(source, config["vocab_size"], score_id)
    PolarEncoder(tokenizer)  # refuses a tokenizer that could not serve
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            dtypes = _write_weights(files, config, folder)
            _llama_config(config, dtypes).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            folder.rename(target)
    except (OSError, SafetensorError) as error:
        raise PolarError(f"'{target}' cannot be written: {error}; free some space or choose another folder") from error
    return target


def _config(source: Path) -> dict[str, Any]:
    if not (source / "config.json").is_file():
        raise PolarError(f"'{source}' has no config.json; give the folder of an official POLAR checkpoint")
    config = read_json(source / "config.json")
    architectures = config.get("architectures") or ["none"]
    if architectures != [ARCHITECTURE]:
        raise PolarError(
            f"'{source}' is a {', '.join(map(str, architectures))}; only {ARCHITECTURE} (internlm/POLAR-*) can be "
            "converted"
        )
    scaling = config.get("rope_scaling") or {"type": "dynamic"}
    for unknown, found in (
        ("biases", config.get("bias", True)),
        (f"activation '{config.get('hidden_act')}'", config.get("hidden_act", "silu") != "silu"),
        (f"rope scaling '{scaling.get('type')}'", scaling.get("type") not in ("dynamic", "linear")),
    ):
        if found:
            raise PolarError(f"'{source}' has {unknown}, which no released POLAR model has; it cannot be converted")
    missing = [name for name in (*_COPIED, "rope_theta") if config.get(name) is None]
    if missing:
        raise PolarError(f"'{source}/config.json' lacks {', '.join(missing)}; download it again")
    return config


def _llama_config(config: Mapping[str, Any], dtypes: frozenset[str]) -> Any:
    from transformers import LlamaConfig

    scaling = config.get("rope_scaling") or {}
    linear = {"rope_type": "linear", "factor": scaling["factor"]} if scaling.get("type") == "linear" else {}
    settings: dict[str, Any] = {
        **{name: config[name] for name in _COPIED},
        "initializer_range": config.get("initializer_range", 0.02),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rope_theta"]), **linear},
        "tie_word_embeddings": False,
        "num_labels": 1,
        "architectures": ["LlamaForSequenceClassification"],
        "dtype": next(iter(dtypes)) if len(dtypes) == 1 else "float32",
        "polar": {
            "separator": SEPARATOR,
            "score_token": SCORE_TOKEN,
            "max_length": min(MAX_LENGTH, config["max_position_embeddings"]),
            "max_response_length": MAX_RESPONSE_LENGTH,
        },
    }
    return LlamaConfig(**settings)


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an InternLM2 reward model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    rows = hidden + 2 * config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "v_head.weight": (1, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{_WQKV}": (rows, hidden),
            f"model.layers.{layer}.attention.wo.weight": (hidden, hidden),
            f"model.layers.{layer}.feed_forward.w1.weight": (inner, hidden),
            f"model.layers.{layer}.feed_forward.w3.weight": (inner, hidden),
            f"model.layers.{layer}.feed_forward.w2.weight": (hidden, inner),
            f"model.layers.{layer}.attention_norm.weight": (hidden,),
            f"model.layers.{layer}.ffn_norm.weight": (hidden,),
        }
    return shapes


def _weight_files(source: Path) -> list[Path]:
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = source / f"{stem}.index.json"
        if index.is_file():
            files = [source / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        elif (source / stem).is_file():
            files = [source / stem]
        else:
            continue
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise PolarError(f"'{source}' lacks {', '.join(missing)}; download the whole checkpoint")
        return files
    raise PolarError(f"'{source}' has neither model.safetensors nor pytorch_model.bin; download the whole checkpoint")


def _check_weights(files: list[Path], expected: Mapping[str, tuple[int, ...]]) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                found.update(file_shapes(file))
            except ValueError as error:
                raise PolarError(f"{error}; download it again") from error
        else:
            found.update((name, tuple(tensor.shape)) for name, tensor in _tensors(file))
    for problem, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise PolarError(f"'{files[0].parent}' {problem} tensors: {', '.join(names[:3])}{more}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise PolarError(f"'{name}' has shape {list(found[name])}, and config.json makes it {list(shape)}")


def _tensors(file: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every tensor of a weight file, mapped rather than read."""
    if file.suffix == ".safetensors":
        yield from tensors(file)
        return
    import torch

    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever unpickling meets
        raise PolarError(f"'{file}' cannot be read as PyTorch weights; download it again") from error
    yield from content.items()


def _renamed(name: str, tensor: "torch.Tensor", config: Mapping[str, Any]) -> Iterator[tuple[str, "torch.Tensor"]]:
    """What one tensor becomes; the rows of ``wqkv`` are each key head's queries, then its key, then its value."""
    if name in _OUTER:
        yield _OUTER[name], tensor
        return
    layer, inner = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:])
    if inner != _WQKV:
        yield f"{layer}.{_INNER[inner]}", tensor
        return
    hidden, heads, key_heads = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    grouped = tensor.view(key_heads, heads // key_heads + 2, hidden // heads, hidden)
    for target, part in zip(_QKV, (grouped[:, :-2], grouped[:, -2], grouped[:, -1]), strict=True):
        yield f"{layer}.{target}", part.reshape(-1, hidden)


def _write_weights(files: list[Path], config: Mapping[str, Any], folder: Path) -> frozenset[str]:
    """Writes the renamed tensors in shards; returns the types that occur."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    dtypes: set[str] = set()
    size = total = 0

    def flush() -> None:
        nonlocal size
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()
        size = 0

    for file in files:
        for name, tensor in _tensors(file):
            for renamed, part in _renamed(name, tensor, config):
                part_bytes = part.numel() * part.element_size()
                if pending and size + part_bytes > SHARD_BYTES:
                    flush()
                pending[renamed] = part.contiguous()
                dtypes.add(str(part.dtype).removeprefix("torch."))
                size, total = size + part_bytes, total + part_bytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return frozenset(dtypes)
    weight_map = {}
    for at, names in enumerate(shards):
        file_name = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{at}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return frozenset(dtypes)
