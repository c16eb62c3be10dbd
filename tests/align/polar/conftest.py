"""Policy discriminators of the tiny model; tests must not write to them."""

from pathlib import Path

import pytest
import torch

from rewards.polar.model import build_polar, load_polar, polar_settings, save_polar
from rollouts.models import load_tokenizer


@pytest.fixture(scope="session")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_polar(tiny_model, tmp_path_factory.mktemp("polar") / "start")


@pytest.fixture(scope="session")
def scoring(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head that is not zero."""
    folder = tmp_path_factory.mktemp("polar") / "scoring"
    model = load_polar(start, torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, 64, generator=torch.Generator().manual_seed(0)) / 8)
    save_polar(model, load_tokenizer(start), polar_settings(start), folder)
    return folder
