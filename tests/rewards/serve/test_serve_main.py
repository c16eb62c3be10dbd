"""A server's settings: what cannot be had is one line, before anything is loaded."""

import socket
from pathlib import Path

import pytest

from rewards.errors import RewardError
from rewards.polar.types import PolarError
from rewards.serve.main import ServeSettings, listening, serve
from rewards.serve.references import load_references
from tests.rewards.serve.live import live


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RewardError, match=f"cannot listen on 127.0.0.1:{port}"), listening("127.0.0.1", port):
            raise AssertionError


@pytest.mark.parametrize(("host", "port"), [("256.0.0.1", 80), ("127.0.0.1", 70000)])
def test_an_address_that_cannot_be(host: str, port: int) -> None:
    with pytest.raises(RewardError, match=f"cannot listen on {host}:{port}"), listening(host, port):
        raise AssertionError


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PolarError, match="nothing"):
        serve(ServeSettings(str(tmp_path / "nothing")))


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_token_that_is_not_set(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("REWARD_TOKEN", value)
    with pytest.raises(RewardError, match="set the environment variable REWARD_TOKEN"):
        serve(ServeSettings("polar", token_env="REWARD_TOKEN"))


def test_references(tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    path.write_text('{"prompt": "p", "reference": "r", "id": 5}\n\n{"prompt": "q", "reference": "s"}\n')
    assert load_references(path) == {"p": "r", "q": "s"}
    path.write_text('{"prompt": "p", "reference": "r"}\n{"prompt": "p", "reference": "r"}\n')
    assert load_references(path) == {"p": "r"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "p", "reference": "r"}\n{"prompt": "p", "reference": "s"}', "line 2: another reference"),
        ("{", "line 1: is not JSON"),
        ("[1]", "line 1: give"),
        ('{"prompt": "p", "reference": ""}', "line 1: give"),
        ('{"prompt": "p"}', "line 1: give"),
        (None, "cannot be read"),
    ],
)
def test_references_that_cannot_be_used(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "references.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RewardError, match=said):
        load_references(path)


def test_a_model_that_cannot_be_opened_ends_the_server() -> None:
    def broken(folder: Path) -> None:
        raise PolarError("the folder holds no POLAR model")

    with live(open_scorer=broken, ready=False) as server:
        server.thread.join(20)
        assert not server.thread.is_alive()
        assert isinstance(server.raised, PolarError)
