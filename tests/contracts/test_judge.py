"""What every judge of pairs promises; then what can happen to those that live behind HTTP."""

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewards.endpoint import EndpointConfig
from rewards.errors import RewardError
from rewards.judges import BothOrders, CallableJudge, JudgeItem, PairJudge, RemoteJudge
from rewards.types import ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt

ANSWERS = {"none": None, "nan": math.nan, "inf": math.inf, "above": 1.5, "below": -0.25, "word": "0.5", "list": [0.5]}
"""What a judge that is not well answers, by the first completion that makes it so."""


def better(prompt: Any, first: str, second: str) -> Any:
    """The rule that all judges of this suite follow: the longer, in proportion; a system turn makes a tie."""
    if first in ANSWERS:
        return ANSWERS[first]
    return 0.5 if isinstance(prompt, list) else len(first) / (len(first) + len(second))


def one_by_one(prompt: Any, first: str, second: str) -> Any:
    return better(prompt, first, second)


def by_lists(prompts: Sequence[Any], firsts: Sequence[str], seconds: Sequence[str], **fields: Any) -> Any:
    assert set(fields) == {"reference", "answer"}
    return [better(*item) for item in zip(prompts, firsts, seconds, strict=True)]


Reply = Callable[[BaseHTTPRequestHandler, list[dict[str, Any]]], None]


class Server:
    """A real HTTP server; the replies of ``script`` come first, then right ones for ever."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.requests: list[tuple[dict[str, str], list[dict[str, Any]]]] = []
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                items = json.loads(self.rfile.read(int(self.headers["content-length"])))["items"]
                server.requests.append(({k.lower(): v for k, v in self.headers.items()}, items))
                (server.script.pop(0) if server.script else right)(self, items)

            def log_message(self, format: str, *args: Any) -> None:
                """A test's output is not the place for an access log."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/judge"

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def right(handler: BaseHTTPRequestHandler, items: list[dict[str, Any]]) -> None:
    answers: list[Any] = []
    for item in items:
        value = better(item["prompt"], item["first"], item["second"])
        answers.append({"error": "cannot tell"} if value is None else {"probability": value})
    send(handler, 200, json.dumps({"items": answers}).encode())


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    return lambda handler, items: send(handler, code, body, {k.replace("_", "-"): v for k, v in headers.items()})


def answer(body: bytes) -> Reply:
    return lambda handler, items: send(handler, 200, body)


def hang_up(handler: BaseHTTPRequestHandler, items: list[dict[str, Any]]) -> None:
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture(params=["callable", "callable of lists", "remote", "both orders", "remote in both orders"])
def judge(request: pytest.FixtureRequest, server: Server) -> PairJudge:
    remote = RemoteJudge(EndpointConfig(server.url, batch_size=3))
    request.addfinalizer(remote.close)
    judges: dict[str, PairJudge] = {
        "callable": CallableJudge(one_by_one),
        "callable of lists": CallableJudge(by_lists),
        "remote": remote,
        "both orders": BothOrders(CallableJudge(one_by_one)),
        "remote in both orders": BothOrders(remote),
    }
    return judges[request.param]


def completion(text: str) -> Completion:
    return Completion((1, 2), (), text, Finish.STOP, Origin.POLICY, 0)


def item(first: str, second: str, system: str | None = None) -> JudgeItem:
    before = (Message("system", system),) if system else ()
    return JudgeItem(Prompt("p", (*before, Message("user", "q"))), completion(first), completion(second))


def test_every_item_is_answered_in_its_place(judge: PairJudge) -> None:
    assert isinstance(judge, PairJudge)
    items = [item("a" * i, "a" * (8 - i)) for i in range(1, 8)]
    assert judge.judge(items) == pytest.approx([i / 8 for i in range(1, 8)])


def test_no_items_no_answers(judge: PairJudge) -> None:
    assert judge.judge([]) == []


def test_answers_do_not_depend_on_the_company(judge: PairJudge) -> None:
    items = [item("a", "aaa"), item("aa", "aa"), item("aaa", "a"), item("aaa", "aaaaa")]
    assert judge.judge(items) == [judge.judge([each])[0] for each in items]


def test_a_prompt_of_several_turns_arrives_as_messages(judge: PairJudge) -> None:
    assert judge.judge([item("a", "aaa", system="be brief"), item("a", "aaa")]) == [0.5, 0.25]


@pytest.mark.parametrize("kind", [k for k in ANSWERS if k != "word"])
def test_no_answer_is_a_failure_in_its_place_and_never_a_number(judge: PairJudge, kind: str) -> None:
    before, failed, after = judge.judge([item("a", "aaa"), item(kind, "a"), item("aaa", "a")])
    assert (before, after) == (0.25, 0.75)
    assert isinstance(failed, ScoreFailure) and failed.reason


def test_a_number_in_quotes_is_no_number(judge: PairJudge) -> None:
    [failed] = judge.judge([item("word", "a")])
    assert isinstance(failed, ScoreFailure) and "'0.5'" in failed.reason


# What a Python function can do wrong.


def test_a_judging_function_needs_the_documented_names() -> None:
    with pytest.raises(RewardError, match="must take prompt, first and second, or lists named prompts, firsts and sec"):
        CallableJudge(lambda question, a, b: 0.5)


def test_a_judging_function_that_raises_is_named() -> None:
    def broken(prompt: str, first: str, second: str) -> float:
        raise ZeroDivisionError("by zero")

    with pytest.raises(RewardError, match=r"^judge .*broken raised ZeroDivisionError: by zero$"):
        CallableJudge(broken).judge([item("a", "b")])


def test_a_judging_function_of_lists_must_keep_all() -> None:
    with pytest.raises(RewardError, match="gave 1 numbers for 2 items"):
        CallableJudge(lambda prompts, firsts, seconds: [0.5]).judge([item("a", "b")] * 2)


# What can happen over HTTP. Pauses are written down instead of waited for.


class Asked:
    """A remote judge whose pauses are recorded."""

    def __init__(self, url: str, **config: Any) -> None:
        self.pauses: list[float] = []
        self.judge = RemoteJudge(EndpointConfig(url, **config), sleep=self.pauses.append)

    def __call__(self, *items: JudgeItem) -> list[float | ScoreFailure]:
        try:
            return self.judge.judge(items or [item("a", "aaa")])
        finally:
            self.judge.close()


def test_items_travel_in_batches_with_the_documented_fields(server: Server) -> None:
    assert Asked(server.url, batch_size=2)(*[item("a", "aaa")] * 5) == [0.25] * 5
    assert [len(items) for _, items in server.requests] == [2, 2, 1]
    assert server.requests[0][1][0] == {"prompt": "q", "first": "a", "second": "aaa"}


@pytest.mark.parametrize("fault", [status(500), status(502), status(503), status(408), status(429), hang_up])
def test_a_fault_that_passes_is_tried_again(server: Server, fault: Reply) -> None:
    server.script = [fault, fault]
    ask = Asked(server.url, backoff_s=8.0)
    assert ask() == [0.25]
    # The pause doubles, and up to half of it is left to chance: 4 to 8 s, then 8 to 16 s.
    first, second = ask.pauses
    assert 4 <= first <= 8 <= second <= 16


@pytest.mark.parametrize("code", [429, 503])
def test_the_wait_that_a_server_asks_for_is_kept(server: Server, code: int) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.script = [status(code, retry_after="7"), status(code, retry_after=later), status(code, retry_after="soon")]
    ask = Asked(server.url, backoff_s=0.5, max_wait_s=7200)
    assert ask() == [0.25]
    seconds, date, unreadable = ask.pauses
    assert seconds == 7 and 3000 < date <= 3600 and unreadable <= 2


def test_a_wait_longer_than_allowed_is_an_error(server: Server) -> None:
    server.script = [status(429, retry_after="3600")]
    ask = Asked(server.url)
    with pytest.raises(RewardError, match=r"answered 429 and asks to wait 3600 s, longer than max_wait_s \(60 s\)"):
        ask()
    assert ask.pauses == []


def test_a_server_that_stays_broken_is_one_error_after_the_retries(server: Server) -> None:
    server.script = [status(500)] * 9
    with pytest.raises(RewardError, match="judge answered 500, also at the last of 3 tries: check that"):
        Asked(server.url, retries=2)()
    assert len(server.requests) == 3


def test_nobody_there_is_one_error_after_the_retries() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ask = Asked(f"http://127.0.0.1:{unused.getsockname()[1]}/judge", retries=2)
        with pytest.raises(
            RewardError, match=r"cannot be reached \(.*refused\), also at the last of 3 tries"
        ) as caught:
            ask()
    assert len(ask.pauses) == 2
    assert "\n" not in str(caught.value)


def test_silence_ends_at_the_deadline(server: Server) -> None:
    server.script = [lambda handler, items: server.released.wait(60) and None] * 2
    with pytest.raises(RewardError, match=r"gave no answer in 0\.2 s"):
        Asked(server.url, timeout_s=0.2, retries=1)()


def test_an_answer_that_drips_ends_at_the_deadline(server: Server) -> None:
    def drip(handler: BaseHTTPRequestHandler, items: list[dict[str, Any]]) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        # Every silence is shorter than the deadline.
        while not server.released.wait(0.02):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    server.script = [drip]
    with pytest.raises(RewardError, match=r"gave no whole answer in 0\.3 s"):
        Asked(server.url, timeout_s=0.3, retries=0)()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>hello", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON"),
        (b"[0.5]", 'without a list "items"'),
        (b'{"items": 0.5}', 'without a list "items"'),
        (b'{"items": []}', "answered 0 items for 1"),
        (b'{"items": [{"probability": 0.5}, {"probability": 0.5}]}', "answered 2 items for 1"),
        (b'{"items": [0.5]}', "an item with float, not an object"),
        (b'{"items": [{}]}', 'without a number "probability"'),
        (b'{"items": [{"reward": 0.5}]}', 'without a number "probability"'),
        (b'{"items": [{"probability": true}]}', 'without a number "probability"'),
        (b'{"items": [{"probability": NaN}]}', "nan, not a finite number"),
        (b'{"items": [{"probability": -Infinity}]}', "-inf, not a finite number"),
        (b'{"items": [{"probability": 1.01}]}', "not a probability between 0 and 1"),
        (b'{"items": [{"error": "too long"}]}', "refused the item: too long"),
        (b'{"items": [{"error": "too long", "probability": 0.5}]}', "refused the item: too long"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure_with_a_reason(server: Server, body: bytes, reason: str) -> None:
    server.script = [answer(body)]
    [failed] = Asked(server.url)()
    assert isinstance(failed, ScoreFailure) and reason in failed.reason
    assert len(server.requests) == 1


def test_an_unreadable_batch_leaves_the_others_alone(server: Server) -> None:
    server.script = [answer(b"?")]
    answers = Asked(server.url, batch_size=2)(*[item("a", "aaa")] * 3)
    assert [isinstance(a, ScoreFailure) for a in answers] == [True, True, False]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, "answered 401 (no entry): check the token and token_env"),
        (404, "answered 404 (no entry): check the URL"),
        (422, "answered 422 (no entry): the server does not accept such requests"),
        (307, "answered 307 (no entry): the server does not"),
    ],
)
def test_a_refusal_is_an_error_at_once(server: Server, code: int, message: str) -> None:
    server.script = [status(code, b"no\nentry")]
    with pytest.raises(RewardError) as caught:
        Asked(server.url)()
    assert message in str(caught.value)
    assert len(server.requests) == 1


def test_the_token_comes_from_the_environment_and_shows_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RewardError, match="set the environment variable POLESTAR_TEST_TOKEN to its token"):
        Asked(server.url, token_env="POLESTAR_TEST_TOKEN")
    monkeypatch.setenv("POLESTAR_TEST_TOKEN", "s3cret\n")
    server.script = [status(403)]
    with pytest.raises(RewardError) as caught:
        Asked(server.url, token_env="POLESTAR_TEST_TOKEN")()
    assert server.requests[0][0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("POLESTAR_TEST_TOKEN", "two\nlines")
    with pytest.raises(RewardError, match="cannot stand in a header") as caught:
        Asked(server.url, token_env="POLESTAR_TEST_TOKEN")
    assert "two" not in str(caught.value)


@pytest.mark.parametrize("config", [{"timeout_s": 0.0}, {"batch_size": 0}, {"retries": -1}, {"backoff_s": -1.0}])
def test_settings_without_a_meaning_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match="must be above 0"):
        Asked("http://127.0.0.1:1", **config)


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(RewardError, match="must start with http:// or https://"):
        Asked("127.0.0.1:8000/judge")
