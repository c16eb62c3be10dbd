"""The servers that ``align bench serve`` compares, each in processes of its own."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import httpx

from align.bench.load import Dialect
from align.errors import UserError
from cluster.ports import free_ports

KV_CACHE_GIB: Final = 1
BATCH_TOKENS: Final = 8192
BLOCK: Final = 32
_START_SECONDS: Final = 600.0
_END_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What every server serves; ``folder`` is a POLAR model, ``max_context`` in tokens."""

    folder: Path
    dtype: str
    max_context: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers, and what it understands."""

    url: str
    dialect: Dialect


@contextmanager
def polestar(setting: Setting, log: Path, *, reuse: bool) -> Iterator[Address]:
    """Our server on the vLLM engine, as ``align serve`` runs it, with or without prefix reuse."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_polestar, args=(theirs, setting, log, reuse))
    process.start()
    theirs.close()
    try:
        try:
            url = f"http://127.0.0.1:{ours.recv()}"
        except EOFError as error:
            raise UserError(f"our server has not started: {_last_line(log)}") from error
        _wait(f"{url}/ready", process.is_alive, log)
        yield Address(url, "polestar")
    finally:
        ours.close()  # it takes that as its end
        process.join(_END_SECONDS)
        process.kill()
        process.join()


@contextmanager
def vllm(setting: Setting, log: Path) -> Iterator[Address]:
    """vLLM's own server as it comes, but for limits that are ours too: memory, batch and no compilation."""
    (port,) = free_ports()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--runner", "pooling"]
    command += ["--model", str(setting.folder), "--served-model-name", "polar", "--dtype", setting.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(setting.max_context), "--max-num-batched-tokens", str(BATCH_TOKENS)]
    command += ["--block-size", str(BLOCK), "--enforce-eager", "--disable-log-stats"]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children of its own, which end with it
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/health", lambda: process.poll() is None, log)
        yield Address(url, "vllm")
    finally:
        _end(process)


def _polestar(pipe: Connection, setting: Setting, log: Path, reuse: bool) -> None:
    with log.open("wb") as output:  # what libraries print does not belong into the report
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from rewards.polar.scorer import open_scorer
    from rewards.serve.app import create_app
    from rewards.serve.main import Server, listening
    from rewards.serve.process import ProcessScorer
    from rewards.serve.service import ScoringService
    from rewards.serve.types import Limits

    open_ours = functools.partial(
        open_scorer,
        backend="vllm",
        dtype=setting.dtype,
        max_context=setting.max_context,
        probe=False,
        kv_cache_gib=KV_CACHE_GIB,
        prefix_reuse=reuse,
        keep_prefixes=reuse,
    )
    # The model of a measurement may be untrained: no canary.
    service = ScoringService(
        functools.partial(ProcessScorer, open_ours),
        setting.folder,
        name="polar",
        batch_tokens=BATCH_TOKENS,
        canary=None,
    )
    with listening("127.0.0.1", 0) as listener:
        pipe.send(listener.getsockname()[1])
        threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
        Server(create_app(service, limits=Limits()), service, 0.0, lambda line: None).run_on(listener)


def _end_with(pipe: Connection) -> None:
    """Ends this process, as a service manager would, when the other side of the pipe is closed."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(url: str, alive: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    with httpx.Client(trust_env=False, timeout=10) as client:
        while True:
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if not alive():
                raise UserError(f"a server ended while it started: {_last_line(log)}")
            if time.monotonic() > until:
                raise UserError(f"{url} is not there after {_START_SECONDS:g} s: {_last_line(log)}")
            time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    # Of a server that was killed outright, the engine's process is left.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    )
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["without a word"])[-1][:500]
