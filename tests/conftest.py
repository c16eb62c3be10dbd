"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny import build_tiny_classifier, build_tiny_model

# A shell starts background jobs with SIGINT ignored, and their children inherit it: Ctrl-C could not be tested there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine stalls any example for longer than hypothesis's default deadline.
settings.register_profile("polestar", deadline=None)
settings.load_profile("polestar")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; tests must not write to it."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random POLAR model; tests must not write to it."""
    return build_tiny_classifier(tmp_path_factory.mktemp("models") / "classifier")
