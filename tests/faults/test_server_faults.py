"""Signals to a whole server under load: nobody who was let in goes without an answer."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUESTS, ITEMS = 24, 4


class Program:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.rewards.serve.program", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        assert "ready" in self.process.stdout.readline()

    def scorers(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]

    async def load(self, disturb: Any) -> list[httpx.Response]:
        """Many requests at once; when the engine is busy with them, the disturbance."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:
            tasks = [asyncio.create_task(client.post("/v1/score", json=_body(n))) for n in range(REQUESTS)]
            while not (self.folder / "busy").exists():
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            disturb()
            return await asyncio.gather(*tasks)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path)
    try:
        yield running
    finally:
        family = [running.process.pid, *(p.pid for p in running.scorers())] if running.process.poll() is None else []
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        running.process.communicate()


def test_a_killed_engine_costs_nobody_an_answer(program: Program) -> None:
    (scorer,) = program.scorers()
    answers = asyncio.run(program.load(scorer.kill))
    for n, answer in enumerate(answers):
        assert answer.status_code == 200
        assert [one.get("reward") for one in answer.json()["data"]] == [float(n * ITEMS + i) for i in range(ITEMS)]
    (successor,) = program.scorers()
    assert successor.pid != scorer.pid
    assert program.process.poll() is None, "the server itself went on"
    again = httpx.post(f"{program.url}/v1/score", json=_body(1), timeout=60, trust_env=False)
    assert [one["reward"] for one in again.json()["data"]] == [4, 5, 6, 7]


def test_sigterm_under_load_answers_what_was_let_in_and_ends(program: Program) -> None:
    (scorer,) = program.scorers()
    answers = asyncio.run(program.load(program.process.terminate))
    for n, answer in enumerate(answers):
        # Some may have come after the signal: they are told to go elsewhere, with a reason.
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            assert [one["reward"] for one in answer.json()["data"]] == [float(n * ITEMS + i) for i in range(ITEMS)]
    assert sum(answer.status_code == 200 for answer in answers) >= REQUESTS // 2
    _, errors = program.process.communicate(timeout=60)
    assert program.process.returncode == 0, errors
    assert "Traceback" not in errors
    until = time.monotonic() + 30
    while scorer.is_running() and time.monotonic() < until:
        time.sleep(0.02)
    assert not scorer.is_running(), "the engine's process ends with the server"
    assert (program.folder / "closed").exists(), "in order"


def test_an_engine_does_not_outlive_a_server_that_was_killed(program: Program) -> None:
    (scorer,) = program.scorers()
    program.process.kill()
    psutil.wait_procs([scorer], timeout=30)
    assert not scorer.is_running()


def _body(n: int) -> dict[str, Any]:
    return {
        "items": [{"prompt": f"p{n}", "reference": "r", "output": str(n * ITEMS + i)} for i in range(ITEMS)],
    }
