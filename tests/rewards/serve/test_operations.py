"""What those who run a server rely on: limits, the token, weights, back-pressure, deadlines, probes, metrics."""

import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rewards.polar.scorer import ItemScore
from rewards.serve.app import create_app
from rewards.serve.canary import Canary
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits, ServeItem
from tests.rewards.serve.live import (
    CANARY,
    NDJSON,
    Live,
    RuleScorer,
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


def test_limits_name_what_is_too_much() -> None:
    with live(limits=Limits(max_body_bytes=2000, max_items=3, max_item_chars=20)) as server:
        assert error_of(server.post("/v1/score", {"items": items("1", "2", "3", "4")}))[:2] == (413, "too_many_items")
        pair = {"prompt": "q", "reference": "1", "first": "1", "second": "2"}
        assert error_of(server.post("/v1/compare", {"pairs": [pair, pair]}))[:2] == (413, "too_many_items")
        status, code, message = error_of(server.post("/v1/score", {"items": items("1", "2" * 19)}))
        assert (status, code) == (422, "item_too_long")
        assert message == "items[1]: has 21 characters, 20 are allowed"
        status, _, message = error_of(server.post("/v1/compare", {"pairs": [{**pair, "second": "2" * 19}]}))
        assert (status, message.partition(":")[0]) == (422, "pairs[0].second")
        assert error_of(server.post("/v1/score", {"items": items("1" * 3000)}))[:2] == (413, "body_too_large")
        assert server.post("/v1/score", {"items": items("1", "2", "3")}).status_code == 200


def test_a_body_without_a_length_is_counted_while_it_arrives() -> None:
    with live(limits=Limits(max_body_bytes=100_000)) as server:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while sent < 50_000_000:
                sent += 10_000
                yield b" " * 10_000

        answer = server.client.post("/v1/score", content=endless(), headers={"content-type": "application/json"})
        assert error_of(answer)[:2] == (413, "body_too_large")
        assert server.get("/health").status_code == 200


def test_a_body_that_drips_is_given_up() -> None:
    with live(body_timeout_s=0.3) as server:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        assert port is not None
        with socket.create_connection((host, port), timeout=20) as connection:
            head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            connection.sendall(head.encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"slow_body"' in answer


def test_the_token() -> None:
    with live(token="sésame") as server:
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert server.get(path).status_code == 200
        for given in ("", "Bearer", "Bearer wrong", "Basic wrong!", "sésame", "Digest sésame"):
            answer = server.get("/v1/models", headers={"authorization": given.encode()})
            assert error_of(answer)[:2] == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert error_of(server.post("/v1/score", {"items": "?"}))[0] == 401
        for path in ("/metrics", "/v1/models"):
            assert server.get(path, headers={"authorization": "bearer sésame".encode()}).status_code == 200
        # In the URL, as clients that can set no header have it.
        assert server.get("/v1/models", auth=("anybody", "sésame")).status_code == 200
        assert server.get("/v1/models", auth=("sésame", "")).status_code == 401


def test_an_empty_token_is_no_token() -> None:
    service = ScoringService(lambda folder: RuleScorer(), Path("w"), name="rule")
    with pytest.raises(ValueError, match="empty"):
        create_app(service, limits=Limits(), token="")


class Shifted(RuleScorer):
    """Other weights: every reward is one higher, or the canary the wrong way round."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        if folder.name == "missing":
            raise ValueError(f"{folder} holds no model")
        self._shift = 1.0 if folder.name == "better" else 0.0
        self._sign = -1.0 if folder.name == "wrong" else 1.0

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        return [
            replace(s, score=self._sign * s.score + self._shift) if isinstance(s.score, float) else s
            for s in super().score_items(items)
        ]


def test_weights_are_swapped_behind_a_token() -> None:
    with live(token="t", open_scorer=Shifted) as server:
        server.client.headers["authorization"] = "Bearer t"
        score = {"items": items("2")}
        assert server.post("/v1/weights", {"folder": "better"}).json() == {"model": "rule", "weight_version": 1}
        answer = server.post("/v1/score", score).json()
        assert (answer["weight_version"], answer["data"][0]["reward"]) == (1, 103.0)
        for folder in ("missing", "wrong"):
            status, code, message = error_of(server.post("/v1/weights", {"folder": folder}))
            assert (status, code) == (409, "swap_failed")
            assert folder in message
        assert error_of(server.post("/v1/weights", {"folder": ""}))[0] == 422
        answer = server.post("/v1/score", score).json()
        assert (answer["weight_version"], answer["data"][0]["reward"]) == (1, 103.0)
        assert server.get("/v1/models").json()["data"][0]["weight_version"] == 1
        assert server.get("/ready").status_code == 200


def test_without_a_token_weights_stay(server: Live) -> None:
    assert error_of(server.post("/v1/weights", {"folder": "better"}))[:2] == (403, "forbidden")


def test_a_full_queue_says_when_to_come_back() -> None:
    with live(queue_items=4) as server, ThreadPoolExecutor() as pool:
        server.scorer.gate.clear()
        first = pool.submit(server.post, "/v1/score", {"items": items("1")})
        wait_until(
            lambda: server.service.metrics()["requests_open"] == 1 and not server.service.metrics()["queue_items"]
        )
        second = pool.submit(server.post, "/v1/score", {"items": items("2", "3", "4", "5")})
        wait_until(lambda: server.service.metrics()["queue_items"] == 4)
        for headers in ({}, NDJSON):
            answer = server.post("/v1/score", {"items": items("6")}, headers=headers)
            assert error_of(answer)[:2] == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert error_of(server.post("/v1/score", {"items": items(*"abcde")}))[:2] == (413, "too_many_items")
        server.scorer.gate.set()
        assert first.result().status_code == second.result().status_code == 200


def test_deadlines() -> None:
    with live(limits=Limits(max_deadline_s=10)) as server:
        score = {"items": items("1")}
        server.scorer.gate.clear()
        assert error_of(server.post("/v1/score", {**score, "deadline_s": 0.05}))[:2] == (504, "deadline")
        assert error_of(server.post("/v1/score", score, headers={"x-deadline-s": "0.05"}))[:2] == (504, "deadline")
        both = server.post("/v1/score", {**score, "deadline_s": 9}, headers={"x-deadline-s": "0.05"})
        assert error_of(both)[:2] == (504, "deadline")
        dialect = server.post("/classify", {"text": [rendered("q", "1", "1")]}, headers={"x-deadline-s": "0.05"})
        assert error_of(dialect)[:2] == (504, "deadline")
        server.scorer.gate.set()
        for value in ("0", "-1", "nan", "inf", "soon", "11"):
            assert error_of(server.post("/v1/score", score, headers={"x-deadline-s": value}))[0] == 422
        assert server.post("/v1/score", {**score, "deadline_s": 9.5}).status_code == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("train-7.step_3:a", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False), ("", False)],
)
def test_request_ids(server: Live, given: str, kept: bool) -> None:
    for answer in (
        server.get("/health", headers={"x-request-id": given.encode("latin-1")}),
        server.get("/nowhere", headers={"x-request-id": given.encode("latin-1")}),
    ):
        got = answer.headers["x-request-id"]
        assert got == given if kept else re.fullmatch("[0-9a-f]{32}", got)


def test_readiness_tells_a_wrong_canary() -> None:
    upside_down = Canary(CANARY.worse, CANARY.better)
    with live(canary=upside_down, ready=False) as server:
        wait_until(lambda: "order" in (server.service.fault or ""))
        status, code, message = error_of(server.get("/ready"))
        assert (status, code) == (503, "not_ready")
        assert "wrong order" in message
        assert server.get("/health").status_code == 200


def test_while_the_model_is_loaded() -> None:
    loading = threading.Event()

    def slowly(folder: Path) -> RuleScorer:
        assert loading.wait(30)
        return RuleScorer()

    with live(open_scorer=slowly, ready=False) as server:
        assert server.get("/health").status_code == 200
        assert error_of(server.get("/ready"))[:2] == (503, "not_ready")
        answer = server.post("/v1/score", {"items": items("1")})
        assert error_of(answer)[:2] == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        loading.set()
        wait_until(lambda: server.get("/ready").status_code == 200)
        assert server.post("/v1/score", {"items": items("1")}).status_code == 200


def test_metrics_count_what_happened() -> None:
    with live() as server:
        server.post("/v1/score", {"items": items("1", "2", "fail")})
        server.post("/v1/score", {"items": items("1")}, headers=NDJSON)
        server.post("/v1/score", {"items": 5})
        server.get("/nowhere")
        text = server.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text.text)
        for s in family.samples
    }
    route = ("route", "/v1/score")
    assert samples["polestar_requests_total", (route, ("status", "200"))] == 2
    assert samples["polestar_requests_total", (route, ("status", "422"))] == 1
    assert samples["polestar_requests_total", (("route", "other"), ("status", "404"))] == 1
    assert samples["polestar_errors_total", (("code", "invalid"), route)] == 1
    assert samples["polestar_items_total", (("outcome", "scored"),)] == 3
    assert samples["polestar_items_total", (("outcome", "failed"),)] == 1
    assert samples["polestar_request_items_sum", (route,)] == 4
    assert samples["polestar_request_seconds_count", (route,)] == 3
    assert samples["polestar_service_ready", ()] == 1
    assert samples["polestar_service_weight_version", ()] == 0
    assert samples["polestar_service_queue_items", ()] == 0
    assert samples["polestar_service_items_total", ()] == 4


def test_the_model_is_listed(server: Live) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(m["id"], m["object"]) for m in listed["data"]] == [("rule", "model")]


def test_the_manual_loads_nothing_from_elsewhere(server: Live) -> None:
    answer = server.get("/docs")
    page = answer.text
    assert "https:" not in page and "http:" not in page and "//" not in re.sub(r"^\s*//.*$", "", page, flags=re.M)
    assert not re.search(r"<(link|img|iframe)|\bsrc=|@import|url\(", page)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for path in server.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page


def test_the_manuals_examples_are_accepted(server: Live) -> None:
    document = server.get("/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        for example in _examples(document, content["schema"]) if content else ():
            expected = 403 if path == "/v1/weights" else 422 if _unnumbered(example) else 200
            assert server.post(path, example).status_code == expected, (path, example)
            tried += 1
    assert tried >= 11


def _examples(document: Any, schema: Any) -> Iterator[Any]:
    for branch in schema.get("oneOf", [schema]):
        name = branch.get("$ref", "").rpartition("/")[2]
        found = document["components"]["schemas"][name] if name else branch
        if "example" in found:
            yield found["example"]


def _unnumbered(example: Any) -> bool:
    """This test's scorer wants numbers, and examples are for people."""
    return not re.search(r'"(output|first)"', json.dumps(example))


def test_a_bug_of_the_server_is_told_with_the_requests_id(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.service, "submit", broken)
    answer = server.post("/v1/score", {"items": items("1")}, headers={"x-request-id": "my-request"})
    status, code, message = error_of(answer)
    assert (status, code) == (500, "internal")
    assert "my-request" in message
    assert answer.headers["x-request-id"] == "my-request"
    assert "a bug" in caplog.text and "my-request" in caplog.text
