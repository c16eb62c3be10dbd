"""Joining and leaving Ray: which one is meant, what is said when it is not there, and that nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.host import HostError, connect
from cluster.session import _target

ROOT = Path(__file__).resolve().parents[2]

# A driver with one busy part that has a child of its own: all that a run can leave behind.
DRIVER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cluster.host import connect

class Part:
    def start_child(self):
        return os.getpid(), subprocess.Popen(["sleep", "600"]).pid
    def wait(self):
        time.sleep(600)

cluster = connect("ray", num_cpus=2, log_dir=Path(sys.argv[1]))
part = cluster.host(Part, name="part")
print(*part.start_child(), flush=True)
part.wait()
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_job_joins_the_ray_it_was_submitted_to(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    unset.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert _target("10.0.0.2:6379") is None


def test_without_an_address_a_local_ray_is_started(unset: pytest.MonkeyPatch) -> None:
    assert _target(None) == "local"
    unset.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert _target(None) == "local", "that is where `ray job submit` sends jobs to, not a Ray to join"


def test_an_address_is_joined_and_loopback_stays_loopback(unset: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _target(f"127.0.0.1:{port}") == f"[::ffff:127.0.0.1]:{port}"
        unset.setenv("RAY_ADDRESS", f"localhost:{port}")
        assert _target(None) == f"[::ffff:127.0.0.1]:{port}"
    assert _target("auto") == "auto"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_absent_head_is_one_line_that_says_what_to_do(unset: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(HostError) as caught:
        connect("ray", address=address)
    assert str(caught.value) == (
        f"no Ray head at {address}: start one with `align cluster up` or set cluster: {{type: local}}"
    )


def test_a_client_address_is_refused(unset: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="use `ray job submit`"):
        connect("ray", address="ray://127.0.0.1:10001")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_AUTH_MODE", None)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, script, tmp_path / "logs"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        assert driver.stdout is not None
        part, child = map(int, driver.stdout.readline().split())
        family = psutil.Process(driver.pid).children(recursive=True)
        assert {part, child} <= {process.pid for process in family}
        assert any("raylet" in process.name() for process in family)
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)  # as a terminal does on Ctrl-C
        else:
            driver.send_signal(number)
        _, errors = driver.communicate(timeout=60)
        assert driver.returncode != 0, errors
        # Of a driver that was killed outright Ray's two small agents outlive it by a minute; no part does.
        gone = family if number != signal.SIGKILL else [one for one in family if one.pid in (part, child)]
        assert _left(gone) == []
        assert not (home / ".ray").exists(), "no token file that later heads would trip over"
    finally:
        for process in (*family, psutil.Process(driver.pid) if driver.poll() is None else None):
            if process is not None and process.is_running():
                process.kill()


def _left(family: list[psutil.Process]) -> list[Any]:
    """Whom a generous wait has not seen end."""
    for _ in range(300):
        alive = [process for process in family if _runs(process)]
        if not alive:
            return []
        time.sleep(0.1)
    return [(process.pid, process.cmdline()) for process in alive]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
