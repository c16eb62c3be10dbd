"""Helpers around the tiny random models of :mod:`rollouts.tiny`."""

from pathlib import Path

import torch

from rollouts.tiny import build_tiny_model

__all__ = ["build_tiny_model", "perturb"]


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
