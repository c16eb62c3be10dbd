"""Reward functions called as verl and OpenRLHF call them."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import BadRequest, RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve import adapters
from rewards.serve.adapters import OpenRLHFReward, VerlReward, compute_score_batch, reward_func
from rewards.types import ScoreFailure
from rollouts.types import Message
from tests.rewards.serve.native_server import NativeServer, status

CHAT = [{"role": "user", "content": "q"}]


class Lengths:
    def __init__(self) -> None:
        self.items: list[PolarItem] = []

    def __call__(self, items: Sequence[PolarItem]) -> list[ItemScore]:
        self.items += items
        scores = [ScoreFailure("too long") if i.output == "fail" else float(len(i.output)) for i in items]
        return [ItemScore(score, frozenset(), 0, 1) for score in scores]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(adapters.URL_ENV, raising=False)
    monkeypatch.delenv(adapters.TOKEN_ENV, raising=False)
    running = NativeServer()
    yield running
    running.close()


def verl_rows(*outputs: str) -> dict[str, Any]:
    """What verl's batch reward manager passes: columns of a DataProto, so arrays of objects."""
    count = len(outputs)
    extra = np.empty(count, dtype=object)
    extra[:] = [{"prompt": np.array(CHAT, dtype=object), "index": i} for i in range(count)]
    return {
        "data_sources": np.array(["polar"] * count, dtype=object),
        "solution_strs": list(outputs),
        "ground_truths": ["ref"] * count,
        "extra_infos": extra,
    }


def test_verls_columns_become_items() -> None:
    scorer = Lengths()
    given = verl_rows("aaaa", "a")
    given["ground_truths"][1] = [{"role": "assistant", "content": "r"}]
    given["extra_infos"][1] = {"prompt": "plain"}
    assert VerlReward(scorer)(**given, unknown=1) == [4.0, 1.0]
    assert scorer.items == [
        PolarItem((Message("user", "q"),), "ref", "aaaa"),
        PolarItem("plain", (Message("assistant", "r"),), "a"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["extra_infos"].__setitem__(1, {"index": 1}), "item 1: extra_info has no 'prompt'"),
        (lambda g: g["extra_infos"].__setitem__(0, None), "item 0: extra_info has no 'prompt'"),
        (lambda g: g["ground_truths"].__setitem__(1, None), "item 1: reward_model has no 'ground_truth'"),
        (lambda g: g["ground_truths"].__setitem__(1, [1]), "item 1: ground_truth must be text, or a list of messages"),
        (lambda g: g["ground_truths"].__setitem__(0, 5), "item 0: ground_truth must be text, or a list of messages"),
        (lambda g: g["solution_strs"].__setitem__(1, "fail"), "1 of 2 items have no score; item 1: too long"),
    ],
)
def test_verl_gets_numbers_or_one_error(change: Callable[[dict[str, Any]], None], message: str) -> None:
    given = verl_rows("a", "b")
    change(given)
    with pytest.raises(RewardError, match=message):
        VerlReward(Lengths())(**given)


def test_openrlhf_gets_tensors() -> None:
    scorer = Lengths()
    answer = OpenRLHFReward(scorer, lambda p: p.removesuffix("<a>"))(
        ["q1<a>one", "q2<a>"], ["q1<a>", "q2<a>"], ["r", "s"]
    )
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert torch.equal(answer["rewards"], torch.tensor([3.0, 0.0]))
    assert torch.equal(answer["scores"], answer["rewards"])
    assert answer["extra_logs"] == {"reward_mean": 1.5}
    assert scorer.items == [PolarItem("q1", "r", "one"), PolarItem("q2", "s", "")]
    assert OpenRLHFReward(scorer)([], [], [])["rewards"].shape == (0,)


@pytest.mark.parametrize(
    ("query", "label", "message"),
    [
        ("other", "r", "item 0: the query does not begin with its prompt"),
        ("q1 a", "", "item 0: there is no label"),
        ("q1 a", None, "item 0: there is no label"),
        ("q1fail", "r", "1 of 1 items have no score; item 0: too long"),
    ],
)
def test_openrlhf_gets_numbers_or_one_error(query: str, label: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        OpenRLHFReward(Lengths())([query], ["q1"], [label])


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        OpenRLHFReward(Lengths())(["q1"], ["q1", "q2"], ["r"])


def test_a_scorer_that_loses_items_is_found_out() -> None:
    with pytest.raises(RewardError, match="gave 1 scores for 2 items"):
        VerlReward(lambda items: Lengths()(items)[:1])(**verl_rows("a", "b"))


def from_file(name: str) -> Any:
    """As both trainers load a function: from a file, under a name of their own."""
    spec = importlib.util.spec_from_file_location("custom_module", Path(adapters.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_verl_reaches_a_server_with_its_reward_kwargs(server: NativeServer) -> None:
    function = from_file("compute_score_batch")
    assert function(**verl_rows("aaaa", "a"), url=server.url, model="tiny") == [1.0, -2.0]
    assert function(**verl_rows("aaa"), url=server.url, model="tiny") == [0.0]
    assert server.requests[0].body["model"] == "tiny"
    assert "authorization" not in server.requests[0].headers
    assert len(server.connections) == 1


def test_verl_may_ask_row_by_row(server: NativeServer) -> None:
    row = {"data_source": "polar", "solution_str": "aaaa", "ground_truth": "ref", "extra_info": {"prompt": "q"}}
    assert from_file("compute_score")(**row, url=server.url, reward_model_tokenizer=None) == 1.0
    with pytest.raises(RewardError, match="item 0: extra_info has no 'prompt'"):
        from_file("compute_score")("polar", "aaaa", "ref", url=server.url)


def test_openrlhf_reaches_a_server_by_the_environment(server: NativeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewardError, match="set the environment variable POLESTAR_REWARD_URL"):
        reward_func(["qa"], ["q"], ["r"])
    monkeypatch.setenv(adapters.URL_ENV, server.url)
    monkeypatch.setenv(adapters.TOKEN_ENV, "s3cret")
    answer = from_file("reward_func")(["qaaa"], ["q"], ["r"])
    assert answer["rewards"].tolist() == [2.0]
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"


def test_a_refusal_reaches_the_trainer(server: NativeServer) -> None:
    server.script = [status(422, b'{"error": {"code": "invalid", "message": "items[0].output: no"}}')]
    with pytest.raises(BadRequest, match=r"items\[0\]\.output"):
        compute_score_batch(**verl_rows("a"), url=server.url)
