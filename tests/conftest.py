"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; tests must not write to it."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
