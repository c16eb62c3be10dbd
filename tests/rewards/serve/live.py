"""A real server over a scorer that a test understands."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.app import create_app
from rewards.serve.batcher import text_of
from rewards.serve.canary import Canary
from rewards.serve.main import Server, listening
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits, Rendered, ServeItem
from rewards.types import ScoreFailure

NDJSON = {"accept": "application/x-ndjson"}
CANARY = Canary(PolarItem("q", "1", "1"), PolarItem("q", "1", "0"))


def rendered(prompt: str, reference: str, output: str) -> str:
    """As POLAR's client writes it."""
    return f"{prompt}\n{reference}{SEPARATOR}{prompt}\n{output}{SCORE_TOKEN}"


class RuleScorer:
    """The reward is the number that the output is, plus 100 for each number that the reference is.

    An output ``fail`` fails, ``nan`` is scored so, ``die`` kills the engine, ``cut`` is cut. While ``gate`` is clear,
    batches wait.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[ServeItem] = []
        self.closed = False

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        assert self.gate.wait(30)
        self.seen += items
        return [_score(item) for item in items]

    def rebuild(self) -> None:
        """There is nothing to rebuild."""

    def close(self) -> None:
        self.closed = True


def _score(item: ServeItem) -> ItemScore:
    if isinstance(item, Rendered):
        if item.text.count(SEPARATOR) != 1 or not item.text.endswith(SCORE_TOKEN):
            return ItemScore(ScoreFailure("is not one rendered text"), frozenset(), 0, 0)
        first, second = item.text.removesuffix(SCORE_TOKEN).split(SEPARATOR)
        reference, output = first.rpartition("\n")[2], second.rpartition("\n")[2]
    else:
        reference, output = text_of(item.reference), text_of(item.output)
    if output == "die":
        raise RuntimeError("the engine was killed")
    if output == "fail":
        return ItemScore(ScoreFailure("cannot be encoded"), frozenset(), 0, 0)
    score = float("nan") if output == "nan" else float(output.removesuffix(" cut")) + 100 * float(reference)
    return ItemScore(score, frozenset({"output"} if output.endswith(" cut") else ()), 3, 10)


class Live:
    """The address of a server, its parts, and a client; ``raised`` is what ended it."""

    def __init__(
        self, url: str, service: ScoringService, scorer: RuleScorer, server: Server, listener: socket.socket
    ) -> None:
        self.url = url
        self.service = service
        self.scorer = scorer
        self.client = httpx.Client(base_url=url, timeout=30)
        self.thread = threading.Thread(target=self._run, args=(server, listener))
        self.raised: Exception | None = None

    def _run(self, server: Server, listener: socket.socket) -> None:
        try:
            server.run_on(listener)
        except Exception as error:
            self.raised = error

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)


@contextlib.contextmanager
def live(
    *,
    limits: Limits | None = None,
    token: str | None = None,
    references: Mapping[str, str] | None = None,
    scorer: RuleScorer | None = None,
    open_scorer: Callable[[Path], Any] | None = None,
    canary: Canary = CANARY,
    ready: bool = True,
    body_timeout_s: float = 60.0,
    drain_s: float = 5.0,
    **options: Any,
) -> Iterator[Live]:
    """A server in a thread on a free port, until the block ends; ``ready``: it is, when the block begins."""
    scorer = scorer or RuleScorer()
    service = ScoringService(
        open_scorer or (lambda folder: scorer), Path("weights"), name="rule", canary=canary, **options
    )
    app = create_app(
        service, limits=limits or Limits(), token=token, references=references, body_timeout_s=body_timeout_s
    )
    announced = threading.Event()
    with listening("127.0.0.1", 0) as listener:
        server = Server(app, service, drain_s, lambda line: announced.set())
        running = Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service, scorer, server, listener)
        running.thread.start()
        try:
            assert not ready or announced.wait(30)
            yield running
        finally:
            running.client.close()
            scorer.gate.set()
            server.should_exit = True
            running.thread.join(30)
    assert not running.thread.is_alive()


def items(*outputs: str, reference: str = "1") -> list[dict[str, Any]]:
    return [{"prompt": "q", "reference": reference, "output": output} for output in outputs]


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert set(body) == {"error"}
    return answer.status_code, body["error"]["code"], body["error"]["message"]


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)


class Stepwise(RuleScorer):
    """Each batch waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(1)  # the canary's

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        assert self.steps.acquire(timeout=30)
        return super().score_items(items)
