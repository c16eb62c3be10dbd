"""The OpenAPI document, and the server against whatever could be sent to what the document describes: never a 500."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.serve.app import create_app
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits
from tests.rewards.serve.live import Live, RuleScorer, live

DOCUMENT: dict[str, Any] = create_app(
    ScoringService(lambda folder: RuleScorer(), Path("w"), name="rule"), limits=Limits(), token="t"
).openapi()
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
POSTS = [path for method, path in OPERATIONS if method == "POST"]
TOKEN = {"authorization": "Bearer t"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(token="t") as running:
        running.client.headers.update(TOKEN)
        yield running


def check(answer: httpx.Response) -> None:
    """Refused with a reason that the document knows, or answered."""
    documented = DOCUMENT["paths"][answer.request.url.path][answer.request.method.lower()]["responses"]
    assert str(answer.status_code) in documented, (answer.status_code, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"code", "message"}


def examples(path: str) -> list[Any]:
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    found = []
    for branch in schema.get("oneOf", [schema]):
        name = branch.get("$ref", "").rpartition("/")[2]
        found.append((DOCUMENT["components"]["schemas"][name] if name else branch).get("example", {}))
    return found


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in steps:
        yield from places(inner, (*at, key))


def planted(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    value = deepcopy(value)
    inside = value
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = new
    return value


def send(server: Live, path: str, body: Any) -> httpx.Response:
    """As JSON, with the NaN and Infinity that Python's writer allows."""
    return server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON)
def test_any_json_is_answered(server: Live, path: str, body: Any) -> None:
    check(send(server, path, body))


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_good_request_with_anything_in_one_place_is_answered(server: Live, path: str, data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(examples(path)))
    at = data.draw(st.sampled_from(list(places(example))))
    check(send(server, path, planted(example, at, data.draw(JSON))))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60) | JSON.map(msgpack.packb))
def test_any_messagepack_is_answered(server: Live, body: bytes) -> None:
    check(server.client.post("/get_feedback", content=body))


def test_every_operation_is_described() -> None:
    assert {path for _, path in OPERATIONS} >= {
        *("/v1/score", "/v1/compare", "/classify", "/pooling", "/lmdeploy/pooling", "/v1/embeddings"),
        *("/get_reward", "/remote_rm", "/get_feedback", "/rerank", "/v1/rerank", "/v2/rerank"),
        *("/health", "/ready", "/metrics", "/v1/models", "/v1/weights"),
    }
    names = [o["operationId"] for methods in DOCUMENT["paths"].values() for o in methods.values()]
    assert len(set(names)) == len(names)
    for method, path in OPERATIONS:
        operation = DOCUMENT["paths"][path][method.lower()]
        assert len(operation["description"]) > 20, path
        if method == "POST":
            assert {"200", "401", "413", "422", "503"} <= set(operation["responses"]), path
            error = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorAnswer"}, path
            assert all(examples(path)) or path == "/v1/weights", path


def test_the_document_is_served(server: Live) -> None:
    assert server.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_schemathesis_finds_no_server_error(server: Live, method: str, path: str) -> None:
    @schemathesis.serializer("application/msgpack")
    def pack(context: Any, value: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(value)
        except (TypeError, ValueError, OverflowError):
            return b"\xc1"
        return packed

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy())
    def call(case: Any) -> None:
        status = case.call(headers=TOKEN).status_code
        # A deadline too short to keep is refused with 504.
        assert status < 500 or status == 504

    call()
