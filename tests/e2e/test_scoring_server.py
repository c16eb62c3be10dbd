"""The scoring server as a program, over a real (tiny) model: scores, limits, a killed engine, SIGTERM."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.ports import free_ports
from rewards.polar.encoding import PolarEncoder
from rewards.polar.scorer import PolarScorer, open_scorer
from rewards.polar.types import PolarItem
from rewards.serve.canary import DEFAULT_CANARY
from rollouts.models import load_tokenizer
from tests.e2e.programs import finish, start
from tests.tiny import build_tiny_classifier

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONTEXT = 256
PROGRAM = """
import json, sys
from rewards.serve.main import ServeSettings, serve
from rewards.serve.types import Limits

options = json.loads(sys.argv[1])
limits = Limits(**options.pop("limits", {}))
sys.exit(serve(ServeSettings(**options, limits=limits), lambda line: print(line, flush=True)))
"""


@dataclass(frozen=True, slots=True)
class Program:
    process: subprocess.Popen[str]
    url: str

    def engine(self) -> psutil.Process | None:
        """The process that holds the model: the one that has taken most memory."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss, default=None)


@contextlib.contextmanager
def serving(model: Path, **options: object) -> Iterator[Program]:
    settings = {
        "model": str(model),
        "name": "tiny",
        "backend": "transformers",
        "dtype": "float32",
        "max_context": CONTEXT,
        "port": 0,
        **options,
    }
    process = start(sys.executable, "-c", PROGRAM, json.dumps(settings))
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("serving tiny on http://127.0.0.1:"), first + process.communicate()[1]
        second = process.stdout.readline()
        assert second == "tiny is ready\n", second + process.communicate()[1]
        yield Program(process, first.split()[3])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that happens to put the canary pair into the right order."""
    for seed in range(20):
        folder = build_tiny_classifier(tmp_path_factory.mktemp("model") / f"seed{seed}", seed)
        scorer = open_scorer(folder, backend="transformers", max_context=CONTEXT, dtype="float32", probe=False)
        try:
            if DEFAULT_CANARY.verdict(scorer.score_items(DEFAULT_CANARY.items())) is None:
                return folder
        finally:
            scorer.close()
    raise AssertionError("no such model in twenty")


@pytest.fixture(scope="module")
def scorer(model: Path) -> Iterator[PolarScorer]:
    """The same model in this process."""
    opened = open_scorer(model, backend="transformers", max_context=CONTEXT, dtype="float32", probe=False)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Program]:
    with serving(model, limits={"max_items": 20, "max_item_chars": 2000}) as program:
        yield program


ITEMS = [
    PolarItem("What is 2 + 2?", "2 + 2 = 4.", output) for output in ("4", "It is four.", "five", "2 + 2 = 4.", "")
] + [PolarItem("Name a colour.", "Blue.", "Red.", "pretrain")]


def payload(items: list[PolarItem]) -> list[dict[str, object]]:
    return [{"prompt": i.prompt, "reference": i.reference, "output": i.output, "wrapper": i.wrapper} for i in items]


def test_it_scores_as_the_loop_does(server: Program, scorer: PolarScorer) -> None:
    expected = [score.score for score in scorer.score_items(ITEMS)]
    answer = httpx.post(f"{server.url}/v1/score", json={"items": payload(ITEMS)}, timeout=60).json()
    assert [row["reward"] for row in answer["data"]] == pytest.approx(expected, abs=1e-4)
    assert sum(row["cached_tokens"] for row in answer["data"]) > 0, "the prompt and reference are read once"
    assert answer["usage"]["tokens"] == sum(score.tokens for score in scorer.score_items(ITEMS))


def test_rendered_strings_and_triples_agree(server: Program, model: Path) -> None:
    encoder = PolarEncoder(load_tokenizer(model), max_length=CONTEXT, max_response_length=128)
    texts = [encoder.render(i.prompt, i.reference, i.output, i.wrapper) for i in ITEMS]
    triples = httpx.post(f"{server.url}/v1/score", json={"items": payload(ITEMS)}, timeout=60).json()["data"]
    rendered = httpx.post(f"{server.url}/v1/score", json={"items": [{"text": t} for t in texts]}, timeout=60).json()
    polar = httpx.post(f"{server.url}/classify", json={"model": "POLAR-7B", "text": texts}, timeout=60).json()
    expected = pytest.approx([row["reward"] for row in triples], abs=1e-4)
    assert [row["reward"] for row in rendered["data"]] == expected
    assert [entry["embedding"][0] for entry in polar] == expected
    assert sum(row["cached_tokens"] for row in rendered["data"]) > 0, "the shared beginning is found in strings too"


def test_a_bad_string_fails_alone(server: Program) -> None:
    good = {"prompt": "q", "reference": "r", "output": "o"}
    texts = ["no separator", "a<|reward|>b<|reward|>c[UNUSED_TOKEN_130]", "a<|reward|>b", "x" * 900 + "<|reward|>"]
    body = {"items": [good, *({"text": text} for text in texts), good]}
    first, *bad, last = httpx.post(f"{server.url}/v1/score", json=body, timeout=60).json()["data"]
    assert first["reward"] == last["reward"]
    assert [row["error"]["code"] for row in bad] == ["item_failed"] * 4
    alone = httpx.post(f"{server.url}/pooling", json={"input": [texts[1]]}, timeout=60)
    assert alone.status_code == 422
    assert alone.json()["error"]["message"].startswith("input[0]: ")


def test_limits_and_truncation(server: Program) -> None:
    items = payload([PolarItem("q" * 500, "r", "o" * 500)])
    row = httpx.post(f"{server.url}/v1/score", json={"items": items}, timeout=60).json()["data"][0]
    assert row["truncated"] == ["output", "prompt"] and row["tokens"] <= CONTEXT
    assert httpx.post(f"{server.url}/v1/score", json={"items": items * 21}).status_code == 413
    too_long = payload([PolarItem("q", "r", "o" * 2000)])
    assert httpx.post(f"{server.url}/v1/score", json={"items": too_long}).status_code == 422


def test_a_killed_engine_is_replaced_and_every_request_is_answered(server: Program) -> None:
    def ask(n: int) -> httpx.Response:
        items = payload([PolarItem(f"What is {n}?", "A number.", f"{n} {k}") for k in range(20)])
        return httpx.post(f"{server.url}/v1/score", json={"items": items}, timeout=120)

    with ThreadPoolExecutor(8) as pool:
        answers: list[Future[httpx.Response]] = [pool.submit(ask, n) for n in range(40)]
        engine = server.engine()
        assert engine is not None
        engine.kill()
        rows = [answer.result().json()["data"] for answer in answers]
    assert [len(row) for row in rows] == [20] * 40
    assert all(("reward" in entry) != ("error" in entry) for row in rows for entry in row)
    until = time.monotonic() + 60
    while httpx.get(f"{server.url}/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "reward" in ask(99).json()["data"][0]
    assert server.process.poll() is None


def test_sigterm_under_load(model: Path) -> None:
    signalled = threading.Event()

    def ask(url: str, n: int) -> httpx.Response | None:
        items = payload([PolarItem(f"What is {n}?", "A number.", f"{n} {k}") for k in range(20)])
        late = signalled.is_set()
        try:
            return httpx.post(f"{url}/v1/score", json={"items": items}, timeout=60)
        except httpx.TransportError:
            assert late, "who had come before the signal is answered"
            return None

    with serving(model) as program, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, program.url, n) for n in range(100)]
        engine = program.engine()
        while not answers[8].done():
            time.sleep(0.01)
        signalled.set()
        program.process.send_signal(signal.SIGTERM)
        got = [answer.result() for answer in answers]
        assert program.process.wait(60) == 0
        assert engine is not None and not engine.is_running()
    whole = [answer for answer in got if answer is not None and answer.status_code == 200]
    refused = [answer for answer in got if answer is not None and answer.status_code == 503]
    assert len(whole) >= 8 and all(len(answer.json()["data"]) == 20 for answer in whole)
    assert all("retry-after" in answer.headers for answer in refused)
    assert len(whole) + len(refused) + got.count(None) == 100


def test_replicas_on_ray_answer_together_and_end_on_sigterm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORES_TOKEN", "secret")
    (port,) = free_ports()
    process = start(
        *("align", "serve", "--ray", "--replicas", "2", "--num-cpus", "0.5", "--port", str(port)),
        *("--model", str(model), "--backend", "transformers", "--dtype", "float32", "--max-context", str(CONTEXT)),
        *("--token-env", "SCORES_TOKEN"),
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == f"serving {model} on http://127.0.0.1:{port} from 2 replica(s) (manual: /docs)\n", (
            first + process.communicate()[1]
        )
        assert process.stdout.readline() == f"{model} is ready\n"
        family = psutil.Process(process.pid).children(recursive=True)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            assert client.post("/v1/score", json={"items": payload(ITEMS)}).status_code == 401
            client.headers["authorization"] = "Bearer secret"
            answers = [client.post("/v1/score", json={"items": payload(ITEMS)}).json()["data"] for _ in range(8)]
            assert all(answer == answers[0] for answer in answers) and all("reward" in row for row in answers[0])
            refused = client.post("/v1/weights", json={"folder": str(model)})
            assert refused.status_code == 403 and "one of several replicas" in refused.json()["error"]["message"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, process.communicate()[1]
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
    finally:
        process.kill()
        process.communicate()


def test_a_file_is_scored_by_the_command_line_here_and_by_a_server(
    server: Program, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in payload(ITEMS)))
    here = finish(
        *("align", "score", str(source), "--model", str(model), "--backend", "transformers"),
        *("--max-context", str(CONTEXT)),
    )
    assert here.returncode == 0, here.stderr
    assert here.stdout.startswith(f"{len(ITEMS)} items scored, 0 without a score, 0 kept from before: ")
    there = finish("align", "score", str(source), "--url", server.url, "--out", str(tmp_path / "there.jsonl"))
    assert there.returncode == 0, there.stderr
    both = [
        [json.loads(line)["reward"] for line in path.read_text().splitlines()]
        for path in (tmp_path / "answers.scores.jsonl", tmp_path / "there.jsonl")
    ]
    assert both[0] == pytest.approx(both[1], abs=0.3), "bfloat16 here, float32 there"
    again = finish("align", "score", str(source), "--url", server.url, "--out", str(tmp_path / "there.jsonl"))
    assert again.stdout.startswith(f"0 items scored, 0 without a score, {len(ITEMS)} kept from before: ")


def test_bad_calls_are_one_line(server: Program, tmp_path: Path) -> None:
    missing = finish("align", "score", str(tmp_path / "none.jsonl"), "--url", server.url)
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1 and "none.jsonl" in missing.stderr
    unknown = finish("align", "serve", "--model", str(tmp_path / "none"))
    assert unknown.returncode == 2 and len(unknown.stderr.splitlines()) == 1
