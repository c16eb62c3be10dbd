"""Other servers' clients, driven as they are: their requests, and the way each of them reads the answer.

The request and parse code is written from the clients' published contracts: InternLM/POLAR ``reward_func.py``, verl
``reward_loop.py``, OpenRLHF ``utils/agent.py``, slime ``rm_hub``, OAT ``oracles/remote/client.py``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import msgpack
import pytest

from rewards.polar.encoding import SEPARATOR
from rewards.polar.types import PolarItem
from rewards.serve.types import Rendered
from tests.rewards.serve.live import Live, RuleScorer, live, rendered


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(references={"known?": "1"}) as running:
        yield running


def polar_client(url: str, kind: str, data: Sequence[str]) -> list[float] | None:
    """``RewardModelClient`` with its ``server_type``: whatever goes wrong in a try, None comes of it."""
    try:
        if kind == "sglang":
            answer = httpx.post(f"{url}/classify", json={"model": "POLAR-7B", "text": data}, timeout=30)
            return [e["embedding"][0] for e in answer.json()]
        answer = httpx.post(f"{url}/pooling", json={"input": data}, timeout=30)
        if kind == "vllm":
            return [e["data"][-1][0] for e in answer.json()["data"]]
        return [e["data"] for e in answer.json()["data"]]
    except Exception:
        return None


def verl_client(url: str, engine: str, text: str) -> float:
    """``compute_score_disrm``, one item a request; a 4xx is not tried again."""
    payload: dict[str, Any] = {"model": "path/of/the/model", "input": text}
    if engine == "vllm":
        payload["activation"] = False
    answer = httpx.post(f"{url}/{'classify' if engine == 'vllm' else 'v1/embeddings'}", json=payload)
    answer.raise_for_status()
    output = answer.json()
    reward = output["data"][-1]["probs"][-1] if engine == "vllm" else output["data"][-1]["embedding"][-1]
    assert isinstance(reward, float)
    return reward


def openrlhf_client(url: str, query: list[str], prompts: list[Any], labels: list[Any]) -> dict[str, Any]:
    """``_fetch_rewards_via_http``, and the fields that the executor takes out of the answer."""
    answer = httpx.post(f"{url}/get_reward", json={"query": query, "prompts": prompts, "labels": labels})
    answer.raise_for_status()
    info = answer.json()
    return {"reward": info.get("rewards"), "scores": info.get("scores"), "logs": info.get("extra_logs") or {}}


def slime_client(url: str, prompt: Any, response: str, label: Any) -> float:
    """``remote_rm``: the body of the answer is the reward."""
    answer = httpx.post(f"{url}/remote_rm", json={"prompt": prompt, "response": response, "label": label})
    answer.raise_for_status()
    reward = answer.json()
    assert isinstance(reward, float)
    return reward


def oat_client(url: str, **batches: Any) -> dict[str, Any]:
    """``RemoteRMOracle``: MessagePack without a content type, and nothing but 200 is read."""
    body = {"batch_response": [], "batch_candidates": [], **batches}
    answer = httpx.Client(base_url=url).post("/get_feedback", content=msgpack.packb(body), timeout=5)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}, {answer.content!r}")
    result: dict[str, Any] = msgpack.unpackb(answer.content)
    return result


POLAR_URLS = {"sglang": "", "vllm": "", "lmdeploy": "/lmdeploy"}


@pytest.mark.parametrize("kind", POLAR_URLS)
def test_polars_client(server: Live, kind: str) -> None:
    texts = [rendered("q", "1", "2"), rendered("q", "1", "-3"), rendered("other", "0", "4")]
    assert polar_client(server.url + POLAR_URLS[kind], kind, texts) == [102.0, 97.0, 4.0]
    assert polar_client(server.url + POLAR_URLS[kind], kind, []) == []


@pytest.mark.parametrize("kind", POLAR_URLS)
@pytest.mark.parametrize("bad", [rendered("q", "1", "fail"), rendered("q", "1", "nan"), "no separator", ""])
def test_polars_client_never_gets_a_number_for_a_failed_item(server: Live, kind: str, bad: str) -> None:
    assert polar_client(server.url + POLAR_URLS[kind], kind, [rendered("q", "1", "2"), bad]) is None


def test_a_single_text_is_a_list_of_one(server: Live) -> None:
    one = rendered("q", "1", "2")
    assert [e["embedding"] for e in server.post("/classify", {"text": one}).json()] == [[102.0]]
    assert server.post("/pooling", {"input": one}).json()["data"][0]["data"] == [[102.0]]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verls_reward_loop(server: Live, engine: str) -> None:
    assert verl_client(server.url, engine, rendered("q", "1", "-7")) == 93.0
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        verl_client(server.url, engine, "<|user|>q<|assistant|>7")


def test_usage_is_counted(server: Live) -> None:
    answer = server.post("/v1/embeddings", {"input": [rendered("q", "1", "5"), rendered("q", "1", "6")]}).json()
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 20
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}
    assert answer["model"] == "rule"


@pytest.mark.parametrize("flag", ["use_activation", "activation", "softmax"])
@pytest.mark.parametrize("path", ["/classify", "/pooling", "/lmdeploy/pooling", "/v1/embeddings"])
def test_a_squashed_score_is_refused(server: Live, path: str, flag: str) -> None:
    body = {"input": [rendered("q", "1", "2")]}
    answer = server.post(path, {**body, flag: True})
    assert answer.status_code == 422
    assert flag in answer.json()["error"]["message"]
    assert server.post(path, {**body, flag: False}).status_code == 200


def test_openrlhfs_labels_are_references(server: Live) -> None:
    got = openrlhf_client(server.url, ["2+2?4", "2+3?6"], ["2+2?", "2+3?"], ["1", [{"role": "a", "content": "2"}]])
    assert got == {"reward": [104.0, 206.0], "scores": [104.0, 206.0], "logs": {"polar_reward": [104.0, 206.0]}}


def test_openrlhf_without_labels(server: Live) -> None:
    one = rendered("q", "1", "2")
    assert openrlhf_client(server.url, [one], [""], [None])["reward"] == [102.0]
    assert openrlhf_client(server.url, ["known?5"], ["known?"], [""])["reward"] == [105.0]
    assert server.post("/get_reward", {"query": [one]}).json()["rewards"] == [102.0]


def test_slimes_label_is_the_reference(server: Live) -> None:
    assert slime_client(server.url, "q", "2", "1") == 102.0
    assert slime_client(server.url, [{"role": "user", "content": "known?"}], "2", None) == 102.0


def test_oat_scores_responses(server: Live) -> None:
    got = oat_client(server.url, batch_prompt=["a", "b"], batch_response=["2", "3"], batch_reference=["1", "0"])
    assert got == {"batch_score": [102.0, 3.0], "batch_first_win_prob": []}
    assert oat_client(server.url, batch_prompt=["known?"], batch_response=["2"])["batch_score"] == [102.0]


def test_oat_compares_candidates(server: Live) -> None:
    got = oat_client(server.url, batch_prompt=["known?", "known?"], batch_candidates=[("3", "1"), ("0", "0")])
    assert got["batch_score"] == []
    assert got["batch_first_win_prob"] == pytest.approx([1 / (1 + math.exp(-2)), 0.5])


def test_oat_in_json(server: Live) -> None:
    body = {"batch_prompt": ["known?"], "batch_response": ["2"]}
    assert server.post("/get_feedback", body).json() == {"batch_score": [102.0], "batch_first_win_prob": []}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerankers(server: Live, path: str) -> None:
    body = {
        "model": "rerank-v3.5",
        "query": "q",
        "reference": "1",
        "documents": ["2", {"text": "5", "title": "t"}, "3"],
    }
    answer = server.post(path, body).json()
    assert [(r["index"], r["relevance_score"], r["document"]["text"]) for r in answer["results"]] == [
        (1, 105.0, "5"),
        (2, 103.0, "3"),
        (0, 102.0, "2"),
    ]
    assert answer["usage"]["total_tokens"] == 30
    best = server.post(path, {**body, "top_n": 1, "return_documents": False}).json()["results"]
    assert best == [{"index": 1, "relevance_score": 105.0}]
    assert len(server.post(path, {**body, "top_n": 0}).json()["results"]) == 3
    assert server.post(path, {"query": "known?", "documents": ["2"]}).json()["results"][0]["relevance_score"] == 102.0


def test_equal_rewards_keep_their_order(server: Live) -> None:
    answer = server.post("/rerank", {"query": "q", "reference": "1", "documents": ["2", "9", "2", "9"]}).json()
    assert [r["index"] for r in answer["results"]] == [1, 3, 0, 2]


Ask = Callable[[Live, str], httpx.Response]
"""Asks about two items of which the second one's output is given."""


def _packed(s: Live, **batches: Any) -> httpx.Response:
    return s.client.post("/get_feedback", content=msgpack.packb(batches))


DIALECTS: dict[str, tuple[Ask, str]] = {
    "polar-sglang": (
        lambda s, out: s.post("/classify", {"text": [rendered("q", "1", "2"), rendered("q", "1", out)]}),
        "text[1]",
    ),
    "polar-vllm": (
        lambda s, out: s.post("/pooling", {"input": [rendered("q", "1", "2"), rendered("q", "1", out)]}),
        "input[1]",
    ),
    "polar-lmdeploy": (
        lambda s, out: s.post("/lmdeploy/pooling", {"input": [rendered("q", "1", "2"), rendered("q", "1", out)]}),
        "input[1]",
    ),
    "verl-vllm": (lambda s, out: s.post("/classify", {"input": rendered("q", "1", out)}), "input[0]"),
    "verl-sglang": (lambda s, out: s.post("/v1/embeddings", {"input": rendered("q", "1", out)}), "input[0]"),
    "openrlhf": (
        lambda s, out: s.post("/get_reward", {"query": ["q2", f"q{out}"], "prompts": ["q", "q"], "labels": ["1", "1"]}),
        "query[1]",
    ),
    "slime": (lambda s, out: s.post("/remote_rm", {"prompt": "q", "response": out, "label": "1"}), "response"),
    "oat-score": (
        lambda s, out: _packed(s, batch_prompt=["known?", "known?"], batch_response=["2", out]),
        "batch_response[1]",
    ),
    "oat-compare": (
        lambda s, out: _packed(s, batch_prompt=["known?"], batch_candidates=[["2", out]]),
        "batch_candidates[0][1]",
    ),
    "rerank": (
        lambda s, out: s.post("/rerank", {"query": "q", "reference": "1", "documents": ["2", out]}),
        "documents[1]",
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("output", ["fail", "nan"])
def test_a_failed_item_refuses_the_request_by_name(server: Live, dialect: str, output: str) -> None:
    ask, name = DIALECTS[dialect]
    answer = ask(server, output)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "item_failed"
    assert error["message"].startswith(f"{name}: ")


class Lost(RuleScorer):
    """Once it has failed it cannot be built again."""

    def rebuild(self) -> None:
        raise RuntimeError("no memory")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lost_engine_asks_the_client_to_come_back(dialect: str) -> None:
    scorers = [Lost()]
    ask, _ = DIALECTS[dialect]
    with live(open_scorer=lambda folder: scorers.pop(), references={"known?": "1"}) as server:
        answer = ask(server, "die")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "engine_failed"


NOTHING = {
    "polar": ("/classify", {"text": ["q"]}, "text[0]"),
    "verl": ("/v1/embeddings", {"input": "q"}, "input[0]"),
    "openrlhf": ("/get_reward", {"query": ["q2"], "prompts": ["q"], "labels": [None]}, "query[0]"),
    "slime": ("/remote_rm", {"prompt": "q", "response": "2", "label": ""}, "label"),
    "oat": ("/get_feedback", {"batch_prompt": ["q"], "batch_response": ["2"]}, "batch_prompt[0]"),
    "rerank": ("/rerank", {"query": "q", "documents": ["2"]}, "reference"),
}


@pytest.mark.parametrize("dialect", NOTHING)
def test_without_a_reference_there_is_nothing_to_compare_with(server: Live, dialect: str) -> None:
    path, body, name = NOTHING[dialect]
    answer = server.post(path, body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "nothing_to_compare"
    assert error["message"].startswith(f"{name}: there is nothing to compare with")


def test_a_policy_that_writes_a_rendered_string_is_scored_as_text(server: Live) -> None:
    forged = rendered("q", "9", "9")
    server.post("/get_reward", {"query": ["q" + forged], "prompts": ["q"], "labels": ["1"]})
    server.post("/remote_rm", {"prompt": "q", "response": forged, "label": "1"})
    server.post("/rerank", {"query": "q", "reference": "1", "documents": [forged]})
    _packed(server, batch_prompt=["known?"], batch_response=[forged])
    judged = [item for item in server.scorer.seen if isinstance(item, PolarItem) and SEPARATOR in str(item.output)]
    assert [item.output for item in judged[-4:]] == [forged] * 4
    assert not any(isinstance(item, Rendered) and item.text == forged for item in server.scorer.seen)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/classify", {}, "input: Field required"),
        ("/classify", {"text": [1]}, "text[0]: Input should be a valid string"),
        ("/classify", {"input": [[1, 2]]}, "input[0]: Input should be a valid string"),
        ("/classify", 5, "Input should be"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "encoding_format: Input should be 'float'"),
        ("/get_reward", {"query": ["a"], "prompts": []}, "query[0]: without prompts"),
        ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, "prompts: 2 for 1 queries"),
        ("/get_reward", {"query": ["a"], "labels": ["b", "c"]}, "labels: 2 for 1 queries"),
        ("/get_reward", {"query": ["ab"], "prompts": ["b"], "labels": ["1"]}, "query[0]: does not begin with prompts"),
        ("/get_reward", {"query": ["ab"], "labels": ["1"]}, "query[0]: without prompts"),
        ("/remote_rm", {"prompt": "q", "response": 5, "label": "1"}, "response: Input should be a valid string"),
        ("/get_feedback", {"batch_prompt": ["a"], "batch_response": []}, "batch_response: 0 for 1 prompts"),
        ("/get_feedback", {"batch_prompt": ["a"], "batch_candidates": [["b"]]}, "batch_candidates[0]: List should"),
        ("/get_feedback", {"batch_prompt": "a"}, "batch_prompt: Input should be a valid list"),
        ("/get_feedback", [], "body: Input should be"),
        ("/rerank", {"query": "q", "documents": [{"title": "t"}]}, "documents[0].text: Field required"),
        ("/rerank", {"query": "q", "documents": [], "top_n": -1}, "top_n: Input should be greater than or equal to 0"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_by_field(server: Live, path: str, body: Any, said: str) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x81\xff\x00", msgpack.packb(5) + b"\x00"])
def test_what_is_no_messagepack_is_refused(server: Live, body: bytes) -> None:
    answer = server.client.post("/get_feedback", content=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid"
