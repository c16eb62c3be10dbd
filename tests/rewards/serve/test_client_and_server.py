"""Our clients against our own server: what one says the other understands."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.contests import sigmoid
from rewards.errors import BadRequest, Overloaded, RewardError, ServerError, Timeout, Unauthorized
from rewards.polar.reward import PolarReward
from rewards.polar.types import PolarItem
from rewards.serve.client import AsyncRewardClient, Identity, Pair, PairScore, Patience, RewardClient
from rewards.serve.files import score_file
from rewards.serve.types import Limits, Rendered
from rewards.types import ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout
from tests.rewards.serve.live import Live, live, rendered, wait_until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Live]:
    with live() as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[RewardClient]:
    with RewardClient(server.url, batch_items=50) as opened:
        opened.wait_until_ready(30)
        yield opened


def items(*outputs: str) -> list[PolarItem]:
    return [PolarItem((Message("user", "数"),), "1", output) for output in outputs]


def test_scores_and_failures_come_in_their_places(client: RewardClient) -> None:
    few = client.score_items([*items("1", "fail", "nan", "2 cut"), Rendered(rendered("q", "1", "3"))])
    one, failed, nan, cut, text = few
    assert (one.score, cut.score, text.score) == (101.0, 102.0, 103.0)
    assert isinstance(failed.score, ScoreFailure) and "cannot be encoded" in failed.score.reason
    assert isinstance(nan.score, ScoreFailure)
    assert (one.truncated, cut.truncated) == (frozenset(), frozenset({"output"}))
    assert (one.cached_tokens, one.tokens) == (3, 10)


def test_many_items_stream_in_parts(server: Live, client: RewardClient) -> None:
    given = items(*(str(i) for i in range(230)), "fail")
    scores = [answer.score for answer in client.score_items(given)]
    assert scores[:-1] == [100.0 + i for i in range(230)]
    assert isinstance(scores[-1], ScoreFailure)
    assert [answer.score for answer in client.stream(given)] == scores

    async def side_by_side() -> list[object]:
        async with AsyncRewardClient(server.url, batch_items=20) as opened:
            return [answer.score for answer in await opened.score_items(given)]

    assert asyncio.run(side_by_side()) == scores


def test_pairs_are_compared(client: RewardClient) -> None:
    good, bad = client.compare([Pair("q", "1", "2", "1"), Pair("q", "1", "2", "fail")])
    assert good == PairScore(pytest.approx(sigmoid(1.0)), 102.0, 101.0)
    assert isinstance(bad.probability, ScoreFailure) and "second" in bad.probability.reason


def test_the_server_says_who_it_is(client: RewardClient) -> None:
    before = client.identity()
    assert before.model == "rule" and isinstance(before.weights, int)
    client.score_items(items("1"))
    assert client.identity() == before


def test_an_item_that_is_too_long_is_named() -> None:
    with live(limits=Limits(max_item_chars=10)) as small, RewardClient(small.url, batch_items=2) as client:
        with pytest.raises(BadRequest) as caught:
            client.score_items(items("1", "2", "3", "4" * 20))
        assert caught.value.item == 3


def test_another_model_than_the_served_one_is_refused(server: Live) -> None:
    with RewardClient(server.url, model="other") as client, pytest.raises(BadRequest, match="other"):
        client.score_items(items("1"))
    with RewardClient(server.url, model="rule") as client:
        assert client.score_items(items("1"))[0].score == 101.0
        assert client.identity().model == "rule"


def test_the_token_opens_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLESTAR_TEST_TOKEN", "s3cret")
    with live(token="s3cret") as guarded:
        with RewardClient(guarded.url) as client, pytest.raises(Unauthorized):
            client.score_items(items("1"))
        with RewardClient(guarded.url, token_env="POLESTAR_TEST_TOKEN") as client:
            client.wait_until_ready(30)
            assert client.score_items(items("1"))[0].score == 101.0
            assert client.models()[0]["id"] == "rule"


@pytest.mark.parametrize("count", [2, 40])
def test_a_deadline_reaches_the_server(server: Live, count: int) -> None:
    server.scorer.gate.clear()
    with RewardClient(server.url) as client, pytest.raises(Timeout):
        client.score_items(items(*map(str, range(count))), deadline_s=0.5)


def test_a_full_queue_is_waited_for() -> None:
    with live(queue_items=8) as small, RewardClient(small.url) as first, RewardClient(small.url) as second:
        small.scorer.gate.clear()
        # What is being computed does not count: a group of its own holds the engine, and another waits behind it.
        computed = threading.Thread(target=first.score_items, args=([PolarItem("other", "1", "0")],))
        computed.start()
        wait_until(lambda: small.service.metrics()["requests_open"] == 1)
        wait_until(lambda: small.service.metrics()["queue_items"] == 0)
        queued = threading.Thread(target=second.score_items, args=(items("1", "2", "3", "4", "5", "6", "7"),))
        queued.start()
        wait_until(lambda: small.service.metrics()["queue_items"] == 7)
        with RewardClient(small.url, patience=Patience(retries=0)) as client, pytest.raises(Overloaded) as caught:
            client.score_items(items("11", "12", "13"))
        assert caught.value.retry_after_s is not None
        paused: list[float] = []

        def sleep(seconds: float) -> None:
            paused.append(seconds)
            small.scorer.gate.set()
            computed.join(30)
            queued.join(30)

        with RewardClient(small.url, sleep=sleep) as client:
            assert [answer.score for answer in client.score_items(items("11", "12", "13"))] == [111.0, 112.0, 113.0]
        assert len(paused) == 1 and paused[0] >= 1


def test_a_server_that_is_killed_in_the_middle_is_an_error_and_no_short_list(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.rewards.serve.rule_program", "1", "0.05", str(tmp_path / "hold")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            with RewardClient(url, patience=Patience(retries=1, backoff_s=0.01)) as client:
                client.wait_until_ready(60)
                # Prompts of their own: each is a batch of its own, and the answer takes two seconds.
                scores = client.stream([PolarItem(f"q{i}", "1", str(i)) for i in range(40)])
                assert next(scores).score == 100.0
                process.kill()
                with pytest.raises(ServerError, match=r"cannot be reached .*, also at the last of 2 tries"):
                    list(scores)
        finally:
            process.kill()


def test_a_server_stands_in_for_the_scorer_of_a_policy_discriminator(client: RewardClient) -> None:
    completions = tuple(Completion((1, 2), (), text, Finish.STOP, Origin.POLICY, 0) for text in ("1", "3", "fail"))
    rollout = Rollout(Prompt("p", (Message("user", "q"),), "1"), (1,), completions)
    first, second, failed = PolarReward(client.score_items).score([rollout])[0]
    assert (first, second) == (101.0, 103.0) and isinstance(failed, ScoreFailure)
    assert client.score([rollout])[0][:2] == [101.0, 103.0]


def test_a_file_is_scored_by_one_set_of_weights(client: RewardClient, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"prompt": "q", "reference": "1", "output": str(i)} for i in range(60)]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    score_file(source, target, client, batch_items=20)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["reward"] for line in lines] == [100.0 + i for i in range(60)]
    who = client.identity()
    assert {(line["model"], line["weights"]) for line in lines} == {(who.model, who.weights)}
    target.write_text("".join(target.read_text().splitlines(keepends=True)[:30]))
    with pytest.raises(RewardError, match="was scored by rule"):
        score_file(source, target, client, identity=lambda: Identity("rule", 99))
