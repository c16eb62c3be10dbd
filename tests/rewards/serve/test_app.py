"""The native endpoints on a real server: as many answers as items, in order, or a refusal that says why."""

import json
import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.polar.types import PolarItem
from rollouts.types import Message
from tests.rewards.serve.live import (
    NDJSON,
    Live,
    Stepwise,
    error_of,
    items,
    live,
    rendered,
    wait_until,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as running:
        yield running


def test_every_item_is_answered_in_order(server: Live) -> None:
    body = {
        "items": [
            {"prompt": "q", "reference": "1", "output": "2", "id": "a"},
            {"text": rendered("q", "1", "3"), "id": "b"},
            {"prompt": "q", "reference": "1", "output": "fail", "id": "c"},
            {"prompt": "q", "reference": "1", "output": "nan"},
            {"prompt": "q", "reference": "1", "output": "4 cut"},
        ],
        "model": "rule",
    }
    answer = server.post("/v1/score", body)
    assert answer.status_code == 200
    scored = {"truncated": [], "tokens": 10, "cached_tokens": 3}
    assert answer.json() == {
        "model": "rule",
        "weight_version": 0,
        "data": [
            {"index": 0, "id": "a", "reward": 102.0, **scored},
            {"index": 1, "id": "b", "reward": 103.0, **scored},
            {"index": 2, "id": "c", "error": {"code": "item_failed", "message": "cannot be encoded"}},
            {
                "index": 3,
                "id": None,
                "error": {"code": "item_failed", "message": "the model gave nan, which is no score"},
            },
            {"index": 4, "id": None, "reward": 104.0, **scored, "truncated": ["output"]},
        ],
        "usage": {"tokens": 40, "cached_tokens": 12},
    }
    assert "NaN" not in answer.text


@settings(max_examples=25)
@given(outputs=st.lists(st.integers(-999, 999) | st.just("fail"), max_size=30), stream=st.booleans())
def test_n_in_n_out(server: Live, outputs: list[int | str], stream: bool) -> None:
    answer = server.post("/v1/score", {"items": items(*map(str, outputs))}, headers=NDJSON if stream else {})
    rows = [json.loads(line) for line in answer.text.splitlines()[1:]] if stream else answer.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(outputs)))
    assert [row.get("reward") for row in rows] == [None if o == "fail" else 100.0 + int(o) for o in outputs]


def test_messages_and_wrapper_reach_the_scorer(server: Live) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "name": "x"}]
    item = {"prompt": chat, "reference": [{"role": "assistant", "content": "1"}], "output": "2", "wrapper": "pretrain"}
    assert server.post("/v1/score", {"items": [item]}).json()["data"][0]["reward"] == 102.0
    prompt = (Message("system", "s"), Message("user", "u"))
    assert server.scorer.seen[-1] == PolarItem(prompt, (Message("assistant", "1"),), "2", "pretrain")


def test_a_stream_says_the_same_line_by_line(server: Live) -> None:
    body = {"items": items("1", "fail", "3 cut")}
    plain = server.post("/v1/score", body).json()
    answer = server.post("/v1/score", body, headers=NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    head, *rows = map(json.loads, answer.text.splitlines())
    assert head == {"model": "rule", "weight_version": 0, "items": 3}
    assert rows == plain["data"]


def test_a_stream_gives_each_score_as_soon_as_it_is_there() -> None:
    scorer = Stepwise()
    with live(scorer=scorer, batch_tokens=1) as server:
        body = {"items": [item for n in range(3) for item in items(str(n), reference=str(n))]}
        scorer.steps.release()
        with server.client.stream("POST", "/v1/score", json=body, headers=NDJSON) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["items"] == 3
            for n in range(3):
                assert json.loads(next(lines))["reward"] == 101.0 * n
                scorer.steps.release()
            assert list(lines) == []


def test_a_deadline_that_passes_inside_a_stream_leaves_errors() -> None:
    scorer = Stepwise()
    with live(scorer=scorer, batch_tokens=1) as server:
        scorer.steps.release()
        body = {"items": [*items("1"), *items("2", reference="2"), *items("3", reference="3")], "deadline_s": 0.5}
        answer = server.post("/v1/score", body, headers=NDJSON)
        scorer.steps.release(9)
    assert answer.status_code == 200
    _, *rows = map(json.loads, answer.text.splitlines())
    assert [row.get("reward") for row in rows] == [101.0, None, None]
    assert [row.get("error", {}).get("code") for row in rows] == [None, "deadline", "deadline"]


def test_comparisons(server: Live) -> None:
    pair = {"prompt": "q", "reference": "1", "first": "3", "second": "1"}
    pairs = [{**pair, "id": "x"}, {**pair, "second": "fail"}, {**pair, "first": "-900", "second": "900"}]
    answer = server.post("/v1/compare", {"pairs": pairs}).json()
    assert answer["data"][0] == {
        "index": 0,
        "id": "x",
        "probability": pytest.approx(1 / (1 + math.exp(-2))),
        "first": 103.0,
        "second": 101.0,
    }
    failure = {"code": "item_failed", "message": "second: cannot be encoded"}
    assert answer["data"][1] == {"index": 1, "id": None, "error": failure}
    assert answer["data"][2]["probability"] == 0.0
    assert (answer["model"], answer["weight_version"], answer["usage"]["tokens"]) == ("rule", 0, 50)


ITEM = items("2")[0]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"items": [ITEM], "model": "other"}, 404, "model: 'other' is not served here, 'rule' is"),
        ({"items": [ITEM, {**ITEM, "output": 5}]}, 422, "items[1].output: Input should be a valid string"),
        ({"items": [{"prompt": "q", "refernce": "1", "output": "2"}]}, 422, "items[0].reference: Field required"),
        ({"items": [{**ITEM, "refernce": "1"}]}, 422, "items[0].refernce: Extra inputs are not permitted"),
        ({"items": [{**ITEM, "wrapper": "chat"}]}, 422, "items[0].wrapper: Input should be 'sft' or 'pretrain'"),
        ({"items": [{**ITEM, "prompt": [{"role": "u"}]}]}, 422, "items[0].prompt[0].content: Field required"),
        ({"items": [{"text": "t", "output": "2"}]}, 422, "items[0].output: Extra inputs are not permitted"),
        ({"items": [{"text": None}]}, 422, "items[0].text: Input should be a valid string"),
        ({"items": {}}, 422, "items: Input should be a valid list"),
        ({}, 422, "items: Field required"),
        ([], 422, "body: Input should be a valid dictionary"),
        ({"items": [], "deadline_s": 0}, 422, "deadline_s: Input should be greater than 0"),
        ({"items": [], "deadline_s": "5"}, 422, "deadline_s: Input should be a valid number"),
        ({"items": [5] * 9}, 422, "; and 6 more"),
    ],
)
def test_a_request_that_is_wrong_is_refused_by_field(server: Live, body: Any, status: int, said: str) -> None:
    got, _, message = error_of(server.post("/v1/score", body))
    assert got == status
    assert said in message


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"items": [}', 422, "invalid"),
        (b"", 422, "invalid"),
        (b"[" * 100_000, 400, "invalid"),
        (b'{"items": [], "deadline_s": ' + b"1" * 5000 + b"}", 400, "invalid"),
        (b'{"items": [], "deadline_s": 1e999}', 422, "invalid"),
        (b'{"items": [], "deadline_s": NaN}', 422, "invalid"),
        (b'{"items": [{"\\ud800": 1}]}', 422, "invalid"),
        (b"\xff{}", 400, "invalid"),
    ],
)
def test_malformed_bodies_are_refused(server: Live, body: bytes, status: int, code: str) -> None:
    answer = server.client.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert error_of(answer)[:2] == (status, code)


def test_half_a_surrogate_pair_does_no_harm(server: Live) -> None:
    body = b'{"items": [{"prompt": "\\ud800", "reference": "1", "output": "2", "id": "\\udfff"}]}'
    answer = server.client.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert b'"id":"\\udfff"' in answer.content


def test_a_body_that_is_not_declared_as_json_is_refused(server: Live) -> None:
    answer = server.client.post("/v1/score", content=b'{"items": []}', headers={"content-type": "text/plain"})
    status, code, message = error_of(answer)
    assert (status, code) == (415, "unsupported_media_type")
    assert "application/json" in message


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/v1/score", 405, "method_not_allowed")],
)
def test_other_paths_and_methods(server: Live, method: str, path: str, status: int, code: str) -> None:
    assert error_of(server.client.request(method, path))[:2] == (status, code)


@pytest.mark.parametrize("headers", [{}, NDJSON])
def test_what_a_client_that_has_gone_had_queued_is_not_computed(headers: dict[str, str]) -> None:
    with live() as server, ThreadPoolExecutor() as pool:
        server.scorer.gate.clear()
        held = pool.submit(server.post, "/v1/score", {"items": items("1")})
        wait_until(lambda: server.service.metrics()["requests_open"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/score", json={"items": items("7", "8")}, headers=headers, timeout=0.3)
        wait_until(lambda: server.service.metrics()["queue_items"] == 0)
        wait_until(lambda: server.service.metrics()["requests_open"] == 1)
        server.scorer.gate.set()
        assert held.result().status_code == 200
        assert not [i for i in server.scorer.seen if isinstance(i, PolarItem) and i.output in ("7", "8")]


def test_a_client_that_leaves_a_stream_frees_its_places() -> None:
    scorer = Stepwise()
    with live(scorer=scorer, batch_tokens=1) as server:
        scorer.steps.release()
        body = {"items": [item for n in range(9) for item in items(str(n), reference=str(n))]}
        with server.client.stream("POST", "/v1/score", json=body, headers=NDJSON) as answer:
            next(answer.iter_lines())
        wait_until(lambda: server.service.metrics()["requests_open"] == 0)
        assert server.service.metrics()["queue_items"] == 0
        scorer.steps.release(99)


def test_a_client_that_reads_slowly_does_not_hold_the_others() -> None:
    with live() as server:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        assert port is not None
        rows = [{**item, "id": "x" * 2000} for item in items(*map(str, range(3000)))]  # more than sockets buffer
        body = json.dumps({"items": rows}).encode()
        with socket.create_connection((host, port), timeout=20) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            head = (
                "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Accept: application/x-ndjson\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            wait_until(lambda: server.service.metrics()["items_total"] >= 3000)
            assert server.post("/v1/score", {"items": items("1")}).status_code == 200
            lines = b"".join(iter(lambda: connection.recv(65536), b"")).count(b'"reward"')
        assert lines == 3000


def test_ten_thousand_items_in_one_request(server: Live) -> None:
    answer = server.post("/v1/score", {"items": items(*map(str, range(10_000)))})
    assert [row["reward"] for row in answer.json()["data"]] == [100.0 + n for n in range(10_000)]
