"""Signals to a server that has work: what it has taken is answered, or told to go elsewhere, and it ends well."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.e2e.programs import start

NDJSON = {"accept": "application/x-ndjson"}


class Program:
    """The rule scorer's server; while ``hold`` exists, its batches wait."""

    def __init__(self, process: subprocess.Popen[str], hold: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.hold = hold
        port = int(process.stdout.readline())
        assert hold.exists() or process.stdout.readline() == "ready\n"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def ask(self, *outputs: int) -> httpx.Response:
        return self.client.post("/v1/score", json=body(*outputs))

    def wait_for_work(self, requests: int) -> None:
        """Returns when the server has taken so many and not answered them."""
        until = time.monotonic() + 30
        while f"polestar_service_requests_open {float(requests)}" not in self.client.get("/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.01)


@contextlib.contextmanager
def serving(folder: Path, drain_s: float, seconds_per_batch: float) -> Iterator[Program]:
    hold = folder / "hold"
    process = start(
        sys.executable, "-m", "tests.rewards.serve.rule_program", str(drain_s), str(seconds_per_batch), str(hold)
    )
    try:
        program = Program(process, hold)
        with program.client:
            yield program
    finally:
        process.kill()
        process.communicate()


def body(*outputs: int) -> dict[str, object]:
    # Each with a reference of its own: a batch of its own.
    return {"items": [{"prompt": "q", "reference": str(n), "output": str(n)} for n in outputs]}


def test_what_was_taken_is_answered_after_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path, drain_s=20, seconds_per_batch=0) as program, ThreadPoolExecutor(12) as pool:
        program.hold.touch()
        answers = [pool.submit(program.ask, n, n + 100) for n in range(10)]
        stream = pool.submit(program.client.post, "/v1/score", json=body(*range(200, 210)), headers=NDJSON)
        program.wait_for_work(11)
        program.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 20
        while program.client.get("/ready").status_code != 503:
            assert time.monotonic() < until
        late = program.ask(1)  # who comes after the signal is told to go elsewhere
        assert (late.status_code, late.json()["error"]["code"]) == (503, "unavailable")
        assert int(late.headers["retry-after"]) > 0
        program.hold.unlink()
        for n, answer in enumerate(answers):
            assert [row["reward"] for row in answer.result().json()["data"]] == [101.0 * n, 101.0 * (n + 100)]
        _, *rows = map(json.loads, stream.result().text.splitlines())
        assert [row["reward"] for row in rows] == [101.0 * n for n in range(200, 210)]
        assert program.process.wait(20) == 0
        assert program.process.stdout is not None and "ended" in program.process.stdout.read()


def test_what_does_not_fit_into_the_drain_is_told_to_go_elsewhere(tmp_path: Path) -> None:
    with serving(tmp_path, drain_s=0.5, seconds_per_batch=0.3) as program, ThreadPoolExecutor(4) as pool:
        answer = pool.submit(program.ask, *range(50))
        with program.client.stream("POST", "/v1/score", json=body(*range(50)), headers=NDJSON) as stream:
            program.wait_for_work(2)
            program.process.send_signal(signal.SIGTERM)
            _, *rows = map(json.loads, stream.iter_lines())
        assert answer.result().status_code == 503
        assert answer.result().json()["error"]["code"] == "unavailable"
        assert int(answer.result().headers["retry-after"]) > 0
        # The stream had begun: every item of it is answered, the last ones with the reason.
        assert [row["index"] for row in rows] == list(range(50))
        assert "reward" in rows[0] and rows[-1]["error"]["code"] == "unavailable"
        assert program.process.wait(20) == 0


def test_sigterm_while_the_model_is_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()  # its canary waits
    with serving(tmp_path, drain_s=20, seconds_per_batch=0) as program:
        assert program.client.get("/ready").status_code == 503
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(10) == 0


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def try_to_ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            program.ask(*range(500))

    with serving(tmp_path, drain_s=60, seconds_per_batch=0.1) as program:
        waiting = threading.Thread(target=try_to_ask)
        waiting.start()
        program.wait_for_work(1)
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(20) == 0
        waiting.join(20)
        assert not waiting.is_alive()
