"""Both clients against a real server that misbehaves: right scores or typed errors, nothing else."""

import asyncio
import json
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from rewards.errors import (
    BadRequest,
    Overloaded,
    ProtocolError,
    RewardError,
    ServerError,
    Timeout,
    Unauthorized,
)
from rewards.polar.types import PolarItem
from rewards.serve.client import AsyncRewardClient, Identity, Pair, PairScore, Patience, RewardClient
from rewards.serve.types import Rendered
from rewards.types import ScoreFailure, Scorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout
from tests.rewards.serve.native_server import (
    NDJSON,
    Asked,
    Handler,
    NativeServer,
    Reply,
    answer,
    cut_body,
    cut_stream,
    drip,
    hang,
    hang_up,
    lines,
    row,
    rows,
    status,
    stream,
)


class Blocking:
    """The async client, called as the sync one is."""

    def __init__(self, url: str, sleep: Callable[[float], None], **settings: Any) -> None:
        async def pause(seconds: float) -> None:
            sleep(seconds)

        self._runner = asyncio.Runner()
        self._client = AsyncRewardClient(url, sleep=pause, **settings)

    def stream(self, items: Sequence[Any], **more: Any) -> list[Any]:
        async def collected() -> list[Any]:
            return [score async for score in self._client.stream(items, **more)]

        return self._runner.run(collected())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: self._runner.run(getattr(self._client, name)(*args, **more))


class Connect(Protocol):
    pauses: list[float]

    def __call__(self, **settings: Any) -> Any: ...


class _Connect:
    def __init__(self, kind: Callable[..., Any], url: str) -> None:
        self.pauses: list[float] = []
        self.opened: list[Any] = []
        self._kind = kind
        self._url = url

    def __call__(self, url: str | None = None, **settings: Any) -> Any:
        self.opened.append(self._kind(url or self._url, sleep=self.pauses.append, **settings))
        return self.opened[-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = NativeServer()
    yield running
    running.close()


@pytest.fixture(params=[RewardClient, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: NativeServer) -> Iterator[_Connect]:
    connecting = _Connect(request.param, server.url)
    yield connecting
    for client in connecting.opened:
        client.close()


def item(output: str, reference: str = "") -> PolarItem:
    return PolarItem("q", reference, output)


def items(count: int) -> list[PolarItem]:
    return [item("a" * i) for i in range(count)]


def values(scores: Sequence[Any]) -> list[Any]:
    return [score.score for score in scores]


# What travels, and in what parts.


def test_every_item_is_scored_in_its_place(connect: Connect, server: NativeServer) -> None:
    client = connect(batch_items=3)
    assert values(client.score_items(items(8))) == [float(i) for i in range(8)]
    assert sorted(len(asked.items) for asked in server.requests) == [2, 3, 3]
    assert client.score_items([]) == []


def test_items_travel_with_the_documented_fields(connect: Connect, server: NativeServer) -> None:
    chat = (Message("system", "s"), Message("user", "q"))
    client = connect(model="tiny")
    scores = client.score_items([PolarItem(chat, "rr", "ooo", "pretrain"), Rendered("P<|reward|>P"), item("cut")])
    assert values(scores) == [1.0, 0.5, 3.0]
    assert [score.truncated for score in scores] == [frozenset(), frozenset(), frozenset({"prompt"})]
    assert scores[0].cached_tokens == 3
    [asked] = server.requests
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert asked.path == "/v1/score"
    assert asked.body == {
        "items": [
            {"prompt": messages, "reference": "rr", "output": "ooo", "wrapper": "pretrain"},
            {"text": "P<|reward|>P"},
            {"prompt": "q", "reference": "", "output": "cut", "wrapper": "sft"},
        ],
        "model": "tiny",
    }


@pytest.mark.parametrize("path", ["", "/", "/v1/score", "/v1/score/"])
def test_the_url_is_the_root_or_the_whole_path(connect: Connect, server: NativeServer, path: str) -> None:
    client = connect(url=server.url + path)
    client.score_items([item("a")])
    client.compare([Pair("q", "r", "a", "b")])
    assert [asked.path for asked in server.requests] == ["/v1/score", "/v1/compare"]


def test_a_request_holds_no_more_bytes_than_allowed(connect: Connect, server: NativeServer) -> None:
    given = [item("a" * size) for size in (10, 10, 900, 10, 400, 10)]
    client = connect(batch_bytes=700)
    assert values(client.score_items(given)) == [10.0, 10.0, 900.0, 10.0, 400.0, 10.0]
    # The one that is too large goes alone, for the server to refuse or not.
    sizes = sorted([len(each["output"]) for each in asked.items] for asked in server.requests)
    assert sizes == [[10, 10], [10, 400, 10], [900]]


def test_text_of_any_kind_arrives(connect: Connect) -> None:
    assert values(connect().score_items([item("数\u2028\x00\U0001f600\ud800", "é")])) == [4.0]


def test_a_failed_item_is_a_failure_in_its_place(connect: Connect) -> None:
    before, failed, after = values(connect().score_items([item("a"), item("fail"), item("bb")]))
    assert (before, after) == (1.0, 2.0)
    assert failed == ScoreFailure("item_failed: too long")


def test_many_items_are_asked_for_line_by_line_and_few_are_not(connect: Connect, server: NativeServer) -> None:
    client = connect()
    assert values(client.score_items(items(100))) == [float(i) for i in range(100)]
    client.score_items(items(2))
    assert [NDJSON in asked.headers["accept"] for asked in server.requests] == [True, False]


def test_a_server_that_cannot_stream_may_answer_whole(connect: Connect, server: NativeServer) -> None:
    server.script = [rows(*(row(i, {"output": "a", "reference": ""}) for i in range(100)))]
    assert values(connect().score_items(items(100))) == [1.0] * 100


def test_a_server_may_tell_no_more_than_the_reward(connect: Connect, server: NativeServer) -> None:
    server.script = [answer({"data": [{"index": 0, "reward": 2}]})]
    [score] = connect().score_items([item("a")])
    assert (score.score, score.truncated, score.cached_tokens, score.tokens) == (2.0, frozenset(), 0, 0)


def test_one_connection_serves_many_requests(server: NativeServer) -> None:
    with RewardClient(server.url, batch_items=1) as client:
        client.score_items(items(5))
        client.compare([Pair("q", "r", "a", "b")])
        assert client.ready()
    assert len(server.requests) == 7
    assert len(server.connections) == 1


# Failures that pass, and those that stay.


@pytest.mark.parametrize(
    "fault",
    [status(500), status(502), status(503), status(504), status(408), status(429), hang_up, cut_body],
    ids=["500", "502", "503", "504", "408", "429", "hang up", "cut body"],
)
def test_a_fault_that_passes_is_tried_again(connect: Connect, server: NativeServer, fault: Reply) -> None:
    server.script = [fault, fault]
    assert values(connect(patience=Patience(backoff_s=8.0)).score_items(items(3))) == [0.0, 1.0, 2.0]
    # The pause doubles, and up to half of it is left to chance: 4 to 8 s, then 8 to 16 s.
    first, second = connect.pauses
    assert 4 <= first <= 8 <= second <= 16


@pytest.mark.parametrize("partial", [b"", b'{"index": ', b'{"index": 5, "reward": 1.0}'])
def test_a_stream_that_breaks_is_asked_for_again_whole(connect: Connect, server: NativeServer, partial: bytes) -> None:
    server.script = [cut_stream(5, partial), cut_stream(0, b"")]
    assert values(connect().score_items(items(40))) == [float(i) for i in range(40)]
    assert [len(asked.items) for asked in server.requests] == [40, 40, 40]


@pytest.mark.parametrize(
    ("code", "kind"), [("overloaded", Overloaded), ("unavailable", Overloaded), ("deadline", Timeout)]
)
def test_a_server_that_gives_up_midway_is_asked_again(
    connect: Connect, server: NativeServer, code: str, kind: type[RewardError]
) -> None:
    good = [row(i, {"output": "", "reference": ""}) for i in range(30)]
    given_up = [{"index": i, "id": None, "error": {"code": code, "message": "no"}} for i in range(30, 40)]
    server.script = [stream([*good, *given_up])]
    assert values(connect().score_items(items(40))) == [float(i) for i in range(40)]
    server.script = [stream([*good, *given_up])] * 2
    with pytest.raises(kind, match=f"gave up after 30 items \\({code}\\), also at the last of 2 tries"):
        connect(patience=Patience(retries=1)).score_items(items(40))


def test_the_wait_that_a_server_asks_for_is_kept(connect: Connect, server: NativeServer) -> None:
    server.script = [status(503, retry_after="7")]
    assert values(connect(patience=Patience(backoff_s=0.1)).score_items(items(2))) == [0.0, 1.0]
    assert connect.pauses == [7]
    server.script = [status(503, retry_after="90")]
    with pytest.raises(Overloaded, match="asks to wait 90 s, longer than max_wait_s") as caught:
        connect().score_items(items(2))
    assert caught.value.retry_after_s == 90


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (status(500), ServerError, "answered 500"),
        (status(502, b"<html>Bad Gateway</html>"), ServerError, "answered 502"),
        (status(503, retry_after="1"), Overloaded, "answered 503"),
        (status(504), Timeout, "answered 504"),
        (hang_up, ServerError, "cannot be reached"),
        (cut_body, ServerError, "cannot be reached"),
    ],
)
def test_a_fault_that_stays_is_one_typed_error(
    connect: Connect, server: NativeServer, fault: Reply, kind: type[RewardError], message: str
) -> None:
    server.script = [fault] * 9
    with pytest.raises(kind, match=message + ".*, also at the last of 3 tries: check that the server runs") as caught:
        connect(patience=Patience(retries=2)).score_items(items(2))
    assert len(server.requests) == 3
    assert "\n" not in str(caught.value)


def test_nobody_there_is_one_error_after_the_retries(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = connect(url=f"http://127.0.0.1:{unused.getsockname()[1]}", patience=Patience(retries=1))
        with pytest.raises(ServerError, match=r"cannot be reached .*, also at the last of 2 tries"):
            client.score_items(items(1))
        assert not client.ready()


@pytest.mark.parametrize(
    ("code", "body", "kind", "message"),
    [
        (
            401,
            b'{"error": {"code": "unauthorized", "message": "no\\ntoken"}}',
            Unauthorized,
            r"401 \(no token\): check t",
        ),
        (403, b"", Unauthorized, "403: check the token"),
        (404, b"<html>", BadRequest, r"404 \(<html>\): check the URL"),
        (413, b'{"error": {"code": "too_large", "message": "the body"}}', BadRequest, r"413 \(the body\)"),
        (307, b"", BadRequest, "answered 307: the server does not accept such requests"),
    ],
)
def test_a_refusal_is_an_error_at_once(
    connect: Connect, server: NativeServer, code: int, body: bytes, kind: type[RewardError], message: str
) -> None:
    server.script = [status(code, body)]
    with pytest.raises(kind, match=message):
        connect().score_items(items(2))
    assert len(server.requests) == 1
    assert connect.pauses == []


REFUSED = status(422, b'{"error": {"code": "invalid", "message": "items[1].output: Input should be a string"}}')


def test_a_refused_item_is_named_by_its_place_among_those_given(connect: Connect, server: NativeServer) -> None:
    def second(handler: Handler, asked: Asked) -> None:
        REFUSED(handler, asked) if asked.items[0]["output"] == "aaa" else handler.send(
            200, json.dumps({"data": [row(i, each) for i, each in enumerate(asked.items)]}).encode()
        )

    server.script = [second] * 3
    with pytest.raises(BadRequest, match=r"items\[1\]\.output: .*\(item 4 of those given\)") as caught:
        connect(batch_items=3).score_items(items(8))
    assert caught.value.item == 4


def test_a_refused_item_of_the_first_part_is_named_as_the_server_does(connect: Connect, server: NativeServer) -> None:
    server.script = [REFUSED]
    with pytest.raises(BadRequest) as caught:
        connect().score_items(items(2))
    assert caught.value.item == 1 and "given" not in str(caught.value)


GOOD = {"index": 0, "reward": 1.0}
WRONG: list[tuple[Any, str]] = [
    (b"<html>hello", "not JSON"),
    (b"", "not JSON"),
    ([0.5], "with list, not an object"),
    ({"items": [GOOD]}, 'without a list "data"'),
    ({"data": []}, "answered 0 items for 1"),
    ({"data": [GOOD, {"index": 1, "reward": 1.0}]}, "more than 1 items"),
    ({"data": [1.0]}, "an item with float, not an object"),
    ({"data": [{"reward": 1.0}]}, "index None where 0 was due"),
    ({"data": [{"index": 1, "reward": 1.0}]}, "index 1 where 0 was due"),
    ({"data": [{"index": False, "reward": 1.0}]}, "index False where 0 was due"),
    ({"data": [{"index": 0}]}, "no number 'reward', for item 0"),
    ({"data": [{"index": 0, "reward": None}]}, "no number 'reward'"),
    ({"data": [{"index": 0, "reward": "1.0"}]}, "no number 'reward'"),
    ({"data": [{"index": 0, "reward": True}]}, "no number 'reward'"),
    ({"data": [{"index": 0, "reward": 10**400}]}, "inf, not a finite number"),
    ({"data": [{"index": 0, "reward": math.nan}]}, "nan, not a finite number"),
    ({"data": [{"index": 0, "reward": -math.inf}]}, "-inf, not a finite number"),
    ({"data": [{"index": 0, "reward": 1.0, "truncated": ["tail"]}]}, "truncated"),
    ({"data": [{"index": 0, "reward": 1.0, "cached_tokens": -1}]}, "no count 'cached_tokens'"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_a_whole_answer_that_is_wrong_is_an_error_at_once(
    connect: Connect, server: NativeServer, body: Any, message: str
) -> None:
    server.script = [answer(body)]
    with pytest.raises(ProtocolError) as caught:
        connect().score_items(items(1))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:-1], "answered 39 items for 40"),
        (lambda r: [*r, {"index": 40, "reward": 1.0}], "more than 40 items"),
        (lambda r: [r[1], r[0], *r[2:]], "index 1 where 0 was due"),
        (lambda r: [*r[:7], r[8], *r[8:]], "index 8 where 7 was due"),
        (lambda r: [*r[:7], {"index": 7, "reward": math.nan}, *r[8:]], "not a finite number, for item 7"),
        (lambda r: [*r[:7], "seven", *r[8:]], "with str, not an object"),
        (lambda r: [], "answered 0 items for 40"),
    ],
)
def test_a_stream_that_is_wrong_is_an_error(
    connect: Connect, server: NativeServer, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    server.script = [stream(change([row(i, {"output": "", "reference": ""}) for i in range(40)]))]
    with pytest.raises(ProtocolError, match=message):
        connect().score_items(items(40))


def test_rubbish_between_the_lines_is_an_error(connect: Connect, server: NativeServer) -> None:
    server.script = [answer(lines(40, GOOD) + b"oops\n", NDJSON)]
    with pytest.raises(ProtocolError, match="not JSON"):
        connect().score_items(items(40))


# Time.


@pytest.mark.parametrize(("fault", "message"), [(hang, "gave no answer in 0.2 s"), (drip, "no whole answer in 0.2 s")])
def test_silence_ends_in_time(connect: Connect, server: NativeServer, fault: Reply, message: str) -> None:
    server.script = [fault] * 2
    with pytest.raises(Timeout, match=message + ", also at the last of 2 tries"):
        connect(patience=Patience(timeout_s=0.2, retries=1)).score_items(items(40))


@pytest.mark.parametrize("fault", [hang, drip])
def test_the_deadline_bounds_a_call_whatever_the_timeout(connect: Connect, server: NativeServer, fault: Reply) -> None:
    server.script = [fault] * 2
    with pytest.raises(Timeout, match="deadline"):
        connect().score_items(items(40), deadline_s=0.3)
    with pytest.raises(Timeout, match="deadline"):
        connect(patience=Patience(deadline_s=0.3)).score_items(items(40))
    assert len(server.requests) == 2


def test_a_deadline_leaves_no_time_for_a_pause_that_is_longer(connect: Connect, server: NativeServer) -> None:
    server.script = [status(503, retry_after="30")]
    with pytest.raises(Timeout, match="answered 503, and the deadline of 9 s leaves no time for another try"):
        connect().score_items(items(2), deadline_s=9)
    assert connect.pauses == []


def test_the_server_is_told_what_is_left_of_the_deadline(connect: Connect, server: NativeServer) -> None:
    connect(batch_items=1).score_items(items(2), deadline_s=60)
    assert all(50 < asked.body["deadline_s"] <= 60 for asked in server.requests)
    connect().score_items(items(2), deadline_s=1e6)
    # Servers refuse what is longer.
    assert server.requests[-1].body["deadline_s"] == 3600


def test_a_stream_that_gets_on_may_take_longer_than_the_timeout(connect: Connect, server: NativeServer) -> None:
    def slow(handler: Handler, asked: Asked) -> None:
        handler.open_stream()
        for line in lines(40, *(row(i, each) for i, each in enumerate(asked.items))).splitlines(keepends=True):
            server.released.wait(0.02)
            handler.chunk(line)
        handler.chunk(b"")

    server.script = [slow]
    client = connect(patience=Patience(timeout_s=0.5, retries=0))
    assert values(client.score_items(items(40))) == [float(i) for i in range(40)]


# One by one.


def test_a_stream_that_breaks_goes_on_with_the_rest(connect: Connect, server: NativeServer) -> None:
    server.script = [cut_stream(15), cut_stream(10)]
    assert values(list(connect().stream(items(40)))) == [float(i) for i in range(40)]
    assert [len(asked.items) for asked in server.requests] == [40, 25, 15]


def test_a_stream_that_breaks_after_its_last_row_is_whole(connect: Connect, server: NativeServer) -> None:
    server.script = [cut_stream(40, b"")]
    assert values(list(connect().stream(items(40)))) == [float(i) for i in range(40)]
    assert len(server.requests) == 1


def test_a_stream_names_a_refused_item_after_a_break(connect: Connect, server: NativeServer) -> None:
    server.script = [cut_stream(15), status(422, b'{"error": {"code": "invalid", "message": "items[2].output: no"}}')]
    with pytest.raises(BadRequest) as caught:
        list(connect().stream(items(40)))
    assert caught.value.item == 17


def test_scores_are_there_before_the_answer_is_whole(server: NativeServer) -> None:
    def halting(handler: Handler, asked: Asked) -> None:
        handler.open_stream()
        first, *rest = (row(i, each) for i, each in enumerate(asked.items))
        handler.chunk(lines(40, first))
        assert server.released.wait(60)
        handler.chunk(b"".join(json.dumps(each).encode() + b"\n" for each in rest))
        handler.chunk(b"")

    server.script = [halting]
    with RewardClient(server.url) as client:
        scores = client.stream(items(40))
        assert next(scores).score == 0.0
        server.released.set()
        assert values(list(scores)) == [float(i) for i in range(1, 40)]


# Requests side by side.


def test_no_more_requests_are_under_way_than_allowed(server: NativeServer) -> None:
    under_way, most = 0, 0

    def counted(handler: Handler, asked: Asked) -> None:
        nonlocal under_way, most
        with server.lock:
            under_way += 1
            most = max(most, under_way)
        server.released.wait(0.1)
        with server.lock:
            under_way -= 1
        handler.send(200, json.dumps({"data": [row(i, each) for i, each in enumerate(asked.items)]}).encode())

    async def run() -> list[Any]:
        async with AsyncRewardClient(server.url, batch_items=1, concurrency=3) as client:
            halves = await asyncio.gather(client.score_items(items(5)), client.score_items(items(5)))
            return [score for half in halves for score in values(half)]

    server.script = [counted] * 10
    assert asyncio.run(run()) == [0.0, 1.0, 2.0, 3.0, 4.0] * 2
    assert most == 3


def test_the_first_error_stops_the_others(server: NativeServer) -> None:
    server.script = [status(401), *[hang] * 3]

    async def run() -> None:
        async with AsyncRewardClient(server.url, batch_items=1, concurrency=4) as client:
            await client.score_items(items(30))

    with pytest.raises(Unauthorized):
        asyncio.run(run())
    assert len(server.requests) <= 4


# The other questions.


def test_pairs_are_compared_in_their_places(connect: Connect, server: NativeServer) -> None:
    pairs = [Pair("q", "r", "aaa", "a"), Pair("q", "r", "fail", "a"), Pair("q", "r", "a", "a", "pretrain")]
    assert connect(batch_items=2).compare(pairs) == [
        PairScore(0.75, 3.0, 1.0),
        PairScore(ScoreFailure("item_failed: first: too long"), None, None),
        PairScore(0.5, 1.0, 1.0),
    ]
    sent = [pair for asked in server.requests for pair in asked.body["pairs"]]
    assert {"prompt": "q", "reference": "r", "first": "a", "second": "a", "wrapper": "pretrain"} in sent


@pytest.mark.parametrize("probability", [1.01, -0.1, math.nan, None, "0.5"])
def test_what_is_no_probability_is_an_error(connect: Connect, server: NativeServer, probability: Any) -> None:
    server.script = [rows({"index": 0, "probability": probability, "first": 1.0, "second": 0.0})]
    with pytest.raises(ProtocolError, match="for item 0"):
        connect().compare([Pair("q", "r", "a", "b")])


def test_the_server_says_who_it_is(connect: Connect) -> None:
    client = connect()
    assert [model["id"] for model in client.models()] == ["tiny"]
    assert client.identity() == Identity("tiny", 6)
    client.score_items(items(1))
    assert client.identity() == Identity("tiny", 7)


@pytest.mark.parametrize("body", [b"<html>", {"data": 1}, {"data": [{"name": "x"}]}])
def test_a_list_of_models_that_is_none_is_an_error(connect: Connect, server: NativeServer, body: Any) -> None:
    server.script = [answer(body)]
    with pytest.raises(ProtocolError):
        connect().models()


def test_waiting_lasts_until_the_server_is_ready(connect: Connect, server: NativeServer) -> None:
    not_ready = status(503, b'{"error": {"code": "not_ready", "message": "loading"}}')
    server.script = [hang_up, not_ready, not_ready]
    client = connect()
    client.wait_until_ready(timeout_s=30, every_s=0.01)
    assert len(server.requests) == 4
    assert client.ready()
    server.script = [not_ready] * 1000
    assert not client.ready()
    with pytest.raises(Timeout, match=r"/ready answered 503 \(loading\), after 0\.1 s: check that"):
        client.wait_until_ready(timeout_s=0.1, every_s=0.01)


@pytest.mark.parametrize(("code", "kind"), [(401, Unauthorized), (404, BadRequest)])
def test_waiting_ends_at_once_where_it_cannot_help(
    connect: Connect, server: NativeServer, code: int, kind: type[RewardError]
) -> None:
    server.script = [status(code)]
    with pytest.raises(kind, match=f"/ready answered {code}: check the"):
        connect().wait_until_ready()


def test_the_token_comes_from_the_environment_and_shows_nowhere(
    connect: Connect, server: NativeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RewardError, match="set the environment variable POLESTAR_TEST_TOKEN to its token"):
        connect(token_env="POLESTAR_TEST_TOKEN")
    monkeypatch.setenv("POLESTAR_TEST_TOKEN", "s3cret\n")
    client = connect(token_env="POLESTAR_TEST_TOKEN")
    client.score_items(items(1))
    client.models()
    assert {asked.headers["authorization"] for asked in server.requests} == {"Bearer s3cret"}
    server.script = [status(401)]
    with pytest.raises(Unauthorized) as caught:
        client.score_items(items(1))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "must start with http:// or https://"),
        ({"batch_items": 0}, "above 0"),
        ({"batch_bytes": 0}, "above 0"),
        ({"patience": Patience(timeout_s=0)}, "above 0"),
        ({"patience": Patience(retries=-1)}, "at least 0"),
        ({"patience": Patience(deadline_s=0)}, "deadline_s must be above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(connect: Connect, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        connect(**settings)


# As a scorer of the loop.


def rollout(i: int, reference: str | None, *texts: str) -> Rollout:
    return Rollout(
        Prompt(f"p{i}", (Message("system", "s"), Message("user", f"q{i}")), reference),
        (1,),
        tuple(Completion((1, 2), (), text, Finish.STOP, Origin.POLICY, 0) for text in texts),
    )


def test_completions_are_scored_against_the_worked_answer(connect: Connect, server: NativeServer) -> None:
    client = connect()
    scores = client.score(
        [rollout(0, "ref", "aaaa", "a"), rollout(1, None, "b"), rollout(2, "r"), rollout(3, "r", "c")]
    )
    assert scores == [[1.0, -2.0], [ScoreFailure("the prompt has no reference")], [], [0.0]]
    [asked] = server.requests
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q0"}]
    assert asked.items[0] == {"prompt": messages, "reference": "ref", "output": "aaaa", "wrapper": "sft"}
    assert len(asked.items) == 3


def test_the_sync_client_is_a_scorer(server: NativeServer) -> None:
    with RewardClient(server.url) as client:
        assert isinstance(client, Scorer)
