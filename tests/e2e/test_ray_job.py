"""`ray job submit RECIPE`, word for word as users type it, against a head of :func:`cluster.head.up`."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import head
from cluster.head import Head, HeadError
from cluster.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/smoke/xpo_tiny.yaml"

pytestmark = pytest.mark.e2e

# A program that is not in the environment, in a checkout of its own: what a head must get right before any recipe can.
PROGRAM = """
import os, sys
from pathlib import Path
from cluster.host import connect

class Part:
    def where(self):
        return os.getcwd()

cluster = connect("ray", log_dir=Path("logs"))
part = cluster.host(Part, name="part")
print("arguments", *sys.argv[1:])
print("token mode", os.environ.get("RAY_AUTH_MODE"), "threads", os.environ.get("OMP_NUM_THREADS"))
print("joined", not cluster._session.is_local)
print("part beside driver", part.where() == os.getcwd())
cluster.close()
"""


def shell(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user's shell does: the environment's ``bin`` on PATH, no Ray variable but those given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with an executable recipe and the packages it needs, not installed."""
    root = tmp_path / "checkout"
    (root / "recipes").mkdir(parents=True)
    shutil.copytree(ROOT / "cluster", root / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "program.py").write_text(PROGRAM)
    recipe = root / "recipes" / "x.yaml"
    recipe.write_text("#!/usr/bin/env -S python -m program\nbeta: 0.1\n")
    recipe.chmod(0o755)
    return root


def listening(one: Head) -> set[str]:
    """The addresses on which the head's processes accept connections."""
    family = [process for process in (record.find() for record in one.processes) if process]
    sockets = [socket for process in family for socket in process.net_connections("inet")]
    return {str(one.laddr.ip) for one in sockets if one.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(
    "token",
    [pytest.param(False, id="no token file", marks=pytest.mark.slow), pytest.param(True, id="token file")],
)
def test_a_bare_recipe_runs_whether_or_not_a_token_lies_about(
    checkout: Path, tmp_path: Path, token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    if token:
        (home / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", os.defpath)  # no python of ours, as from a service or another environment's shell
    monkeypatch.chdir(tmp_path)  # and not in the checkout
    port, dashboard_port = free_ports(2)
    one = head.up(checkout, port, dashboard_port, num_cpus=4)
    try:
        assert head.up(checkout).processes == one.processes, "a second `up` finds the first, whatever its ports"
        assert listening(one) <= {"127.0.0.1", "::ffff:127.0.0.1"}, "without a token, nobody else may connect"
        done = shell("ray", "job", "submit", "recipes/x.yaml", "beta=0.2", cwd=checkout, HOME=str(home))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "arguments recipes/x.yaml beta=0.2" in done.stdout
        assert "token mode disabled" in done.stdout
        assert "part beside driver True" in done.stdout
        assert "joined True" in done.stdout
        assert (checkout / "logs" / "part.log").exists(), "the job runs in the checkout itself"
        joined = shell(sys.executable, "-m", "program", cwd=checkout, HOME=str(home), RAY_ADDRESS=one.address)
        assert joined.returncode == 0, "a program that is given the head's address joins it: " + joined.stderr
        assert "joined True" in joined.stdout
        family = head._family(one)
    finally:
        head.down(checkout)
    assert head.running(checkout) is None
    assert [process for process in family if process.is_running()] == []


def test_a_head_that_ends_again_is_not_called_running(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends the whole head a second after it takes jobs, if its server for remote clients has not got its port."""
    ports = free_ports(3)
    monkeypatch.setattr(head, "free_ports", lambda *_, **__: ports[2:])
    with socket.create_server(("127.0.0.1", ports[2])), pytest.raises(HeadError) as caught:
        head.up(checkout, *ports[:2])
    assert f"ended while it started (RuntimeError: Failed to bind to address 127.0.0.1:{ports[2]}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert head.running(checkout) is None


@pytest.fixture(scope="module")
def repository() -> Iterator[dict[str, str]]:
    """A head in this repository, and the variable that says where jobs go."""
    if head.running(ROOT):
        pytest.skip("a head of the user's is running in this repository: `align cluster down` first")
    # What an earlier version of the recipe left would be refused, rightly; here it is not what is tested.
    shutil.rmtree(ROOT / "runs" / "xpo-tiny", ignore_errors=True)
    port, dashboard_port = free_ports(2)
    one = head.up(ROOT, port, dashboard_port)
    yield {"RAY_ADDRESS": one.dashboard}
    head.down(ROOT)


@pytest.mark.parametrize(
    "command",
    [
        f"ray job submit {RECIPE}",
        pytest.param(
            f"ray job submit --working-dir . -- {RECIPE} schedule.total_steps=1", marks=pytest.mark.slow, id="uploaded"
        ),
    ],
)
def test_the_smoke_recipe_runs_as_a_job(repository: dict[str, str], command: str) -> None:
    done = shell(*command.split(), cwd=ROOT, **repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
