"""One connection of this process to Ray: joined, or started here and taken down without leaving a process."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn, final

import psutil

from cluster.errors import HostError

# What Ray reads at import or start-up. A value that the user has exported always wins.
_QUIET: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about CUDA_VISIBLE_DEVICES on every start
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` the hook would replace the job's runtime environment
}
_OPEN_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Only for a Ray of our own: idle workers cannot serve parts that bring environment variables, they only take memory.
_SMALL: Mapping[str, str] = {
    "RAY_worker_niceness": "0",  # 15 by default: beside anything else that computes, the parts would starve
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Unset, a local Ray writes ~/.ray/auth_token, and later heads then demand a token that clients do not send.
    "RAY_AUTH_MODE": "disabled",
    # Despite its name the switch that keeps Ray's servers on the loopback interface: nobody else can reach them.
    _OPEN_SWITCH: "0",
}
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
_EXIT_SECONDS = 10.0
_PROBE_SECONDS = 5.0


@final
class RaySession:
    """Joins the job's Ray, or the one at ``address``, or starts a local one; ``close`` undoes exactly that."""

    def __init__(self, address: str | None, num_cpus: int | None, namespace: str | None, object_store_mib: int) -> None:
        address = _target(address)
        self.is_local = address == "local"
        _configure(self.is_local)
        import ray

        if ray.is_initialized():
            raise HostError("this process is already connected to Ray: close the other cluster first")
        options: dict[str, Any] = {}
        if self.is_local:
            from ray._private import ray_constants

            # Some library may have imported Ray before the variable was set: it is read once, at import.
            ray_constants.ENABLE_RAY_CLUSTER = os.environ[_OPEN_SWITCH] not in ("0", "false")
            memory = object_store_mib * 2**20
            options = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": memory}
        before = set(psutil.Process().children())
        self._previous = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise HostError(_unreachable(address, error)) from error
        # Ray's handler aborts the process, and then nothing is closed.
        _on_sigterm(self._previous if callable(self._previous) else _exit)
        self._services = [child for child in psutil.Process().children() if child not in before]
        self._owner = os.getpid()
        self._open = True

    def check(self, name: str, wanted: Mapping[str, float]) -> None:
        """Refuses a part that a Ray of fixed size can never place; a joined one may still grow."""
        if not self.is_local:
            return
        import ray

        present = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for resource, amount in wanted.items():
            if amount > present.get(resource, 0):
                raise HostError(
                    f"part {name!r} asks for {amount:g} {resource} and this machine's Ray has "
                    f"{present.get(resource, 0):g}: lower its resources"
                )

    def close(self) -> None:
        """Disconnects; a Ray that was started here ends, with everything it started."""
        if not self._open or os.getpid() != self._owner:
            return
        self._open = False
        import ray

        family = _descendants(self._services)
        ray.shutdown()
        _on_sigterm(self._previous)
        _, alive = psutil.wait_procs(family, timeout=_EXIT_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_EXIT_SECONDS)


def _target(address: str | None) -> str | None:
    """What to give ``ray.init``: None inside a job, an address to join, or ``"local"`` to start one."""
    if os.environ.get(_IN_JOB):
        return None
    exported = os.environ.get("RAY_ADDRESS", "")
    if exported.startswith(("http://", "https://")):
        exported = ""  # where `ray job submit` sends jobs to: the dashboard, which cannot be joined
    address = address or exported or "local"
    if "://" in address:
        raise HostError(f"{address} is not HOST:PORT: to run in that cluster, use `ray job submit`")
    if address in ("local", "auto"):
        return address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS).close()
    except (OSError, ValueError) as error:  # asked here because Ray asks for a minute, and then ends the process
        raise HostError(_unreachable(address, error)) from error
    # Ray turns a loopback address into the machine's outer one, where a head of `align cluster up` does not listen.
    return f"[::ffff:127.0.0.1]:{port}" if host in ("127.0.0.1", "localhost") else address


def _configure(is_local: bool) -> None:
    for name, value in (*_QUIET.items(), *(_SMALL.items() if is_local else ())):
        os.environ.setdefault(name, value)


def _on_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # exit handlers run, and close what is open


def _unreachable(address: str | None, error: Exception) -> str:
    if address == "local":
        reason = " ".join(str(error).split())
        return f"cannot start a local Ray ({reason}): set cluster: {{type: local}} to run without it"
    where = "the address of this job" if address is None else address
    return f"no Ray head at {where}: start one with `align cluster up` or set cluster: {{type: local}}"


def _descendants(processes: list[psutil.Process]) -> list[psutil.Process]:
    family = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
    return family
