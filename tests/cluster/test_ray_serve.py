"""An app on Ray Serve: replicas answer, finish what they have when they end, and leave nothing behind."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.errors import HostError
from cluster.ports import free_ports
from cluster.serve import Deployed, Deployment, deploy

pytestmark = pytest.mark.slow

# The factories are pickled by reference: replicas find this module by its import root.
ENV = {"PYTHONPATH": str(Path(__file__).resolve().parents[__name__.count(".")])}


class App:
    """Answers with its process; ``/slow`` takes a second; its shutdown leaves a file behind."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            (self.folder / f"ended-{os.getpid()}").touch()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/slow":
            (self.folder / "begun").touch()
            await asyncio.sleep(1.0)
        body = f"{os.getpid()} {os.environ.get('POLESTAR_TEST', '')}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})


class Factory:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self) -> App:
        return App(self.folder)


class Broken:
    def __call__(self) -> App:
        raise RuntimeError("there is no model here")


@pytest.fixture
def others() -> set[psutil.Process]:
    """What earlier tests have started in this process and is none of ours."""
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Deployed]:
    deployment = Deployment(
        "probe", port=free_ports()[0], replicas=2, num_cpus=0.5, env={**ENV, "POLESTAR_TEST": "yes"}
    )
    deployed = deploy(Factory(tmp_path), deployment, num_cpus=2)
    try:
        yield deployed
    finally:
        deployed.close()


def test_replicas_answer_drain_and_leave_nothing_behind(
    others: set[psutil.Process], served: Deployed, tmp_path: Path
) -> None:
    assert served.running() == 2
    with httpx.Client(trust_env=False) as client:
        answers = {client.get(f"{served.url}/").text for _ in range(64)}
    assert {answer.split()[1] for answer in answers} == {"yes"}
    assert len(answers) == 2, "both replicas take part"

    slow: list[httpx.Response] = []

    def ask() -> None:
        slow.append(httpx.get(f"{served.url}/slow", timeout=60, trust_env=False))

    caller = threading.Thread(target=ask)
    caller.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    family = [child for child in psutil.Process().children(recursive=True) if child not in others]
    served.close()
    caller.join(30)
    assert [answer.status_code for answer in slow] == [200], "a request that was under way is answered"
    assert len(list(tmp_path.glob("ended-*"))) == 2, "every app was shut down in order"
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_an_app_that_cannot_start_is_one_line() -> None:
    with pytest.raises(HostError, match=r"app 'broken' cannot be started: .*there is no model here"):
        deploy(Broken(), Deployment("broken", port=free_ports()[0], start_s=120, env=ENV), num_cpus=2)


def test_a_replica_that_books_too_much_is_refused_at_once() -> None:
    with pytest.raises(HostError, match="asks for 64 CPU"):
        deploy(Broken(), Deployment("big", port=free_ports()[0], num_cpus=64), num_cpus=2)
