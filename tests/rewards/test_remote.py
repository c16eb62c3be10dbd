"""A reward server in a recipe: the native contract, and what an answer that breaks it does to a run."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.endpoint import EndpointConfig
from rewards.errors import BadRequest, RewardError, ServerError, Unauthorized
from rewards.remote import RemoteScorer
from rewards.types import ScoreFailure, Scorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout
from tests.rewards.serve.native_server import Asked, Handler, NativeServer, answer, rows, status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = NativeServer()
    yield running
    running.close()


def rollout(name: str, reference: str | None, *texts: str, system: bool = False) -> Rollout:
    before = (Message("system", "s"),) if system else ()
    completions = tuple(Completion((1, 2), (), text, Finish.STOP, Origin.POLICY, 0) for text in texts)
    return Rollout(Prompt(name, (*before, Message("user", "q")), reference), (1,), completions)


def score(config: EndpointConfig, *rollouts: Rollout) -> list[Any]:
    scorer = RemoteScorer(config, sleep=lambda seconds: None)
    assert isinstance(scorer, Scorer)
    try:
        return scorer.score(rollouts)
    finally:
        scorer.close()


@pytest.mark.parametrize("path", ["", "/", "/v1/score"])
def test_every_completion_is_scored_in_its_place(server: NativeServer, path: str) -> None:
    rollouts = [rollout("a", "r", "x", "xxx"), rollout("b", "r"), rollout("c", "", "xx", "fail", "x", system=True)]
    first, second, (number, failed, other) = score(EndpointConfig(server.url + path, batch_size=2), *rollouts)
    assert (first, second, number, other) == ([0.0, 2.0], [], 2.0, 1.0)
    assert failed == ScoreFailure("item_failed: too long")
    assert [asked.path for asked in server.requests] == ["/v1/score"] * 3
    sent = [item for asked in server.requests for item in asked.items]
    assert sent[0] == {"prompt": "q", "reference": "r", "output": "x"}
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert sent[2] == {"prompt": messages, "reference": "", "output": "xx"}


def test_a_server_of_another_kind_may_do_without_references(server: NativeServer) -> None:
    server.script = [rows({"index": 0, "reward": -12.5})]
    assert score(EndpointConfig(server.url), rollout("a", None, "x")) == [[-12.5]]
    assert server.requests[0].items == [{"prompt": "q", "reference": None, "output": "x"}]


def test_a_server_that_needs_references_makes_the_prompt_be_named(server: NativeServer) -> None:
    body = b'{"error": {"code": "invalid", "message": "items[0].reference: Input should be a valid string"}}'
    rollouts = [rollout("a", "r", "x", "y"), rollout("b", None, "z")]
    server.script = [status(422, body)]
    with pytest.raises(RewardError, match=r"items\[0\]\.reference.*; prompt 'b' has no reference: this server may"):
        score(EndpointConfig(server.url), *rollouts[1:])
    server.script = [status(422, body)]
    with pytest.raises(BadRequest, match=r"items\[0\]\.reference") as caught:
        score(EndpointConfig(server.url), *rollouts)
    assert "has no reference" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "not JSON"),
        ({"data": [{"index": 0, "reward": 1.0}]}, "answered 1 items for 2"),
        ({"data": [{"index": 0, "reward": 1.0}, {"index": 1, "reward": math.nan}]}, "not a finite number"),
        ({"items": [{"reward": 1.0}] * 2}, 'without a list "data"'),
    ],
)
def test_an_answer_that_breaks_the_contract_fails_its_batch_alone(server: NativeServer, body: Any, reason: str) -> None:
    server.script = [answer(body)]
    [[first, second, third]] = score(EndpointConfig(server.url, batch_size=2), rollout("a", "", "x", "xx", "xxx"))
    assert isinstance(first, ScoreFailure) and reason in first.reason
    assert first == second
    assert third == 3.0


def test_faults_that_pass_do_not_show(server: NativeServer) -> None:
    server.script = [status(500), status(503, retry_after="1")]
    assert score(EndpointConfig(server.url), rollout("a", "", "x")) == [[1.0]]
    assert len(server.requests) == 3


def test_a_dead_server_is_one_error(server: NativeServer) -> None:
    server.script = [status(500)] * 2
    with pytest.raises(ServerError, match="answered 500, also at the last of 2 tries"):
        score(EndpointConfig(server.url, retries=1), rollout("a", "", "x"))


def test_the_token_is_sent(server: NativeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLESTAR_TEST_TOKEN", "s3cret")

    def guarded(handler: Handler, asked: Asked) -> None:
        handler.send(401 if asked.headers.get("authorization") == "Bearer s3cret" else 500, b"")

    server.script = [guarded]
    with pytest.raises(Unauthorized):
        score(EndpointConfig(server.url, token_env="POLESTAR_TEST_TOKEN"), rollout("a", "", "x"))


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"timeout_s": 0.0}, {"retries": -1}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match="above 0"):
        RemoteScorer(EndpointConfig("http://127.0.0.1:1", **settings))
