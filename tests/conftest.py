"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest

from tests.tiny import build_tiny_model

# A shell starts background jobs with SIGINT ignored, and their children inherit it: Ctrl-C could not be tested there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; tests must not write to it."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
