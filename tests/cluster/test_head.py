"""The head's book-keeping. That it runs jobs is shown in ``tests/e2e/test_ray_job.py``."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import head
from cluster.head import Head, HeadError, Process


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def record(root: Path, process: psutil.Process, started: float | None = None) -> Head:
    head._folder(root)
    one = Head(1, 2, (Process(process.pid, process.create_time() if started is None else started),))
    head._record(root, one)
    return one


def test_without_a_head_nothing_is_stopped(tmp_path: Path) -> None:
    assert head.running(tmp_path) is None
    assert head.down(tmp_path) == "No Ray head was running."
    assert "align cluster up" in head.status(tmp_path)


def test_what_was_recorded_is_found_and_ended(tmp_path: Path, sleeper: psutil.Process) -> None:
    one = record(tmp_path, sleeper)
    assert head.running(tmp_path) == one
    again = head.up(tmp_path)
    assert (again.processes, again.was_running) == (one.processes, True)
    assert str(again).splitlines() == [
        "A Ray head is running already: 127.0.0.1:1, dashboard http://127.0.0.1:2",
        "Next: ray job submit recipes/xpo.yaml",
    ]
    assert head.down(tmp_path) == "The Ray head at 127.0.0.1:1 is stopped."
    assert not sleeper.is_running()
    assert head.running(tmp_path) is None
    assert (tmp_path / ".polestar" / ".gitignore").read_text() == "*\n"


def test_a_number_that_was_given_to_another_process_is_left_alone(tmp_path: Path, sleeper: psutil.Process) -> None:
    record(tmp_path, sleeper, started=sleeper.create_time() - 100)
    assert head.running(tmp_path) is None
    head.down(tmp_path)
    assert sleeper.is_running() and sleeper.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("option", ["--port", "--dashboard-port"])
def test_a_taken_port_is_one_line_and_starts_nothing(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        busy, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        ports = (busy, free) if option == "--port" else (free, busy)
        with pytest.raises(HeadError, match=rf"^port {busy} cannot be used .*choose another \({option}\)$"):
            head.up(tmp_path, *ports)
    assert not (tmp_path / ".polestar").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"port": 1, "dashboard_port": 2, "processes": [{"pid": 3}]}'])
def test_a_broken_record_is_said_and_kept(tmp_path: Path, text: str) -> None:
    state = head._folder(tmp_path) / "head.json"
    state.write_text(text)
    with pytest.raises(HeadError, match=r"head\.json cannot be read"):
        head.down(tmp_path)
    assert state.read_text() == text


def test_the_environment_rules_out_the_known_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    environment = head._environment()
    assert environment["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_ADDRESS" not in environment
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert head._environment()["RAY_AUTH_MODE"] == "token", "a choice of the user's stays"
