"""Helpers around the tiny random models of :mod:`rollouts.tiny`."""

import json
from pathlib import Path

import torch

from rollouts.tiny import build_tiny_model

__all__ = ["build_tiny_classifier", "build_tiny_model", "perturb"]

SEPARATOR, SCORE_TOKEN = "<|reward|>", "[UNUSED_TOKEN_130]"


def build_tiny_classifier(folder: Path, seed: int = 0, spread: float = 0.6) -> Path:
    """Writes a random POLAR model to ``folder``: the tiny Llama, two more tokens, and a scalar head.

    The hidden state behind the last norm has length 8, so that logits spread by about 8 ``spread``, on both sides of 0.
    """
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    build_tiny_model(folder, seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [SEPARATOR, SCORE_TOKEN]})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
        model.resize_token_embeddings(len(tokenizer))
        model.score.weight.data.normal_(std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["polar"] = {
        "separator": SEPARATOR,
        "score_token": SCORE_TOKEN,
        "max_length": model.config.max_position_embeddings,
        "max_response_length": 128,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def perturb(source: Path, target: Path, spread: float = 0.02, seed: int = 1) -> Path:
    """Writes the tensors of ``source`` plus noise of ``spread`` (absolute) to the safetensors file ``target``."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: (tensor.float() + spread * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in load_file(source).items()
    }
    save_file(noisy, target)
    return target
