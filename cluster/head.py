"""A Ray head on this machine, started so that `ray job submit recipes/xpo.yaml` simply works, and stopped exactly.

What goes wrong with a head that is started by hand: it runs in another folder, and the recipe is not found (exit 127);
the environment's ``bin`` is not on its PATH, and the recipe's ``python`` is not found (exit 127); a local Ray has once
written a token, and the head demands it from clients that do not send it. And it listens on every interface.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from cluster.ports import free_ports

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 180.0
_STOP_SECONDS = 15.0
_OBJECT_STORE_BYTES = 256 * 2**20


class HeadError(RuntimeError):
    """The head could not be started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that ``up`` has started: the number alone may be given to another one later."""

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The process, if it is still that one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True, slots=True)
class Head:
    """A running head. ``processes`` starts with the one that watches over the others."""

    port: int
    dashboard_port: int
    processes: tuple[Process, ...]
    was_running: bool = False

    def __str__(self) -> str:
        found = "A Ray head is running already" if self.was_running else "A Ray head is running"
        return f"{found}: {self.address}, dashboard {self.dashboard}\nNext: ray job submit recipes/xpo.yaml"

    @property
    def address(self) -> str:
        """What a program joins: ``HOST:PORT``."""
        return f"{_LOOPBACK}:{self.port}"

    @property
    def mapped_address(self) -> str:
        """The same, spelt as an IPv6 address."""
        return f"[::ffff:{_LOOPBACK}]:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to and looked at."""
        return f"http://{_LOOPBACK}:{self.dashboard_port}"


def up(root: Path, port: int = 6379, dashboard_port: int = 8265, num_cpus: int | None = None) -> Head:
    """Starts a head for the checkout at ``root``, on the loopback interface only, and waits until it takes jobs.

    The text of the result says what to type next. A head that is running already is left as it is.
    """
    root = root.resolve()
    if head := running(root):
        return replace(head, was_running=True)
    for number, option in ((port, "--port"), (dashboard_port, "--dashboard-port")):
        _check_free(number, option)
    log = _folder(root) / "head.log"
    # Ray's fixed default would collide with another Ray on this machine.
    (client_port,) = free_ports(but=(port, dashboard_port))
    with log.open("wb") as output:
        ray = subprocess.Popen(
            _command(port, dashboard_port, client_port, num_cpus),
            cwd=root,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is not for the head
        )
    watcher = Process(ray.pid, psutil.Process(ray.pid).create_time())
    head = Head(port, dashboard_port, (watcher,))
    try:
        _record(root, head)
        _wait(ray, head, client_port, log)
        _note_address(head)
        head = Head(port, dashboard_port, (watcher, *_remember(_family(head), watcher)))
        _record(root, head)
    except BaseException:  # Ctrl-C too: what does not take jobs is not left running
        _stop(head)
        _state(root).unlink(missing_ok=True)
        raise
    return head


def down(root: Path) -> str:
    """Stops what ``up`` has started for ``root``, jobs included, and nothing else; says what it did."""
    root = root.resolve()
    head = _read(root)
    if head is None:
        return "No Ray head was running."
    _stop(head)
    _state(root).unlink(missing_ok=True)
    return f"The Ray head at {head.address} is stopped."


def status(root: Path) -> str:
    """Says whether the head that ``up`` has started for ``root`` runs, and where."""
    head = running(root)
    return str(head) if head else "No Ray head is running: start one with `align cluster up`."


def running(root: Path) -> Head | None:
    """The head that ``up`` has started for ``root``, while it runs."""
    head = _read(root.resolve())
    return head if head and head.processes[0].find() else None


def _command(port: int, dashboard_port: int, client_port: int, num_cpus: int | None) -> list[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={_LOOPBACK}", f"--port={port}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    command += ["--include-dashboard=true", f"--dashboard-host={_LOOPBACK}", f"--dashboard-port={dashboard_port}"]
    command += ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={client_port}"]
    return command + ([f"--num-cpus={num_cpus}"] if num_cpus is not None else [])


def _environment() -> dict[str, str]:
    """What the head's processes and the jobs inherit."""
    environment = dict(os.environ)
    folder = str(Path(sys.executable).parent)  # unresolved: in a virtual environment the link is what counts
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    # The only switch that keeps Ray's own servers off the other interfaces, despite its name; --node-ip-address alone
    # is resolved to the outer address. Without it the next line would let the whole network run code here.
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # The choice is made here: left open, it depends on whether a local Ray has ever written ~/.ray/auth_token, and the
    # client does not look there.
    environment.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray would hold a job's driver, and with it a loop that runs without actors, to one thread.
    environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    environment.setdefault("RAY_enable_metrics_collection", "0")
    environment.setdefault("RAY_worker_niceness", "0")  # as for a local Ray: 15 starves parts beside other work
    environment.setdefault("RAY_prestart_worker_first_driver", "0")
    environment.setdefault("RAY_enable_worker_prestart", "0")
    environment.pop("RAY_ADDRESS", None)  # where this shell submits jobs to; in the head it would mean another cluster
    return environment


def _wait(ray: "subprocess.Popen[bytes]", head: Head, client_port: int, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    # The server of Ray's remote clients too: it starts last, and if it cannot, Ray ends the whole head.
    while not (_takes_jobs(head) and _noted() == head.address and _listens(head, client_port)):
        if ray.poll() is not None:
            raise HeadError(f"the Ray head ended while it started ({_why(log)}); its log: {log}")
        if time.monotonic() > until:
            raise HeadError(f"the Ray head takes no jobs after {_START_SECONDS:g} s; its log: {log}")
        time.sleep(0.25)


def _takes_jobs(head: Head) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine's ports
    try:
        with opener.open(f"{head.dashboard}/api/jobs/", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and asks for the token that the user has switched on
    except (urllib.error.URLError, OSError):
        return False


def _listens(head: Head, port: int) -> bool:
    """Whether one of the head's own processes does: another program on that port is why the head is about to end."""
    for process in _family(head):
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                return True
    return False


def _family(head: Head) -> list[psutil.Process]:
    """Every process of the head: descendants, and orphans of its session."""
    roots = [process for process in (record.find() for record in head.processes) if process]
    family = dict.fromkeys(roots)
    for process in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(dict.fromkeys(process.children(recursive=True)))
    watcher = head.processes[0]
    if psutil.pid_exists(watcher.pid) and not watcher.find():
        return list(family)  # the number is another one's now, and so is the session of that number
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == watcher.pid:
                family[process] = None
    return list(family)


def _remember(family: list[psutil.Process], watcher: Process) -> Iterator[Process]:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid != watcher.pid:
                yield Process(process.pid, process.create_time())


def _stop(head: Head) -> None:
    family = _family(head)
    if watcher := head.processes[0].find():
        with contextlib.suppress(psutil.NoSuchProcess):
            watcher.send_signal(signal.SIGTERM)  # it ends its children in order
            psutil.wait_procs([watcher], timeout=_STOP_SECONDS)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    if alive:
        raise HeadError(f"these processes of the Ray head do not end: {', '.join(str(one.pid) for one in alive)}")
    _forget_address(head)


def _note() -> Path:
    """Where Ray notes the newest head of this machine, for clients that are given no address."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(folder, "ray", "ray_current_cluster")


def _noted() -> str:
    try:
        return _note().read_text().strip()
    except FileNotFoundError:
        return ""


def _note_address(head: Head) -> None:
    """Notes the loopback address in the one spelling that clients do not turn into the machine's outer address."""
    _note().write_text(head.mapped_address)


def _forget_address(head: Head) -> None:
    """A note of a stopped head makes clients wait for nothing."""
    if _noted() in (head.address, head.mapped_address):
        _note().unlink(missing_ok=True)


def _check_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise HeadError(
                f"port {port} cannot be used ({error.strerror}): stop what listens there, or choose another ({option})"
            ) from error


def _why(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
    return (errors or lines or ["without a word"])[-1]


def _folder(root: Path) -> Path:
    folder = root / ".polestar"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")  # neither committed nor uploaded with a job's working folder
    return folder


def _state(root: Path) -> Path:
    return root / ".polestar" / "head.json"


def _record(root: Path, head: Head) -> None:
    path = _state(root)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(asdict(head), indent=1))
    os.replace(temporary, path)


def _read(root: Path) -> Head | None:
    try:
        state = json.loads(_state(root).read_text())
        processes = tuple(Process(int(one["pid"]), float(one["started"])) for one in state["processes"])
        return Head(int(state["port"]), int(state["dashboard_port"]), processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HeadError(f"{_state(root)} cannot be read ({error}): stop its Ray head by hand and delete it") from error
