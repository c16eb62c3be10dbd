"""A service that lives as long as its app."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ports import free_ports
from cluster.serve import Deployment, deploy
from rewards.serve.app import create_app
from rewards.serve.lifespan import WithLifespan
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits
from tests.rewards.serve.fakes import FakeScorer, PlainScorer
from tests.rewards.serve.replica import Factory

ROOT = Path(__file__).resolve().parents[3]


def lifespan(app: Any) -> list[dict[str, Any]]:
    """What the app says to a server that starts and ends."""
    said: list[dict[str, Any]] = []

    async def run() -> None:
        events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, Any]:
            return next(events)

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        await app({"type": "lifespan"}, receive, send)

    asyncio.run(run())
    return said


def test_a_service_starts_and_ends_with_its_app() -> None:
    scorer = FakeScorer()
    service = ScoringService(lambda folder: scorer, Path("model"), name="fake", canary=None)
    said = lifespan(WithLifespan(create_app(service, limits=Limits()), service, 1.0))
    assert said == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    assert scorer.closed and not service.alive


def test_a_model_that_cannot_be_opened_fails_the_start() -> None:
    service = ScoringService(PlainScorer, Path("missing"), name="plain")
    said = lifespan(WithLifespan(create_app(service, limits=Limits()), service, 1.0))
    assert said == [{"type": "lifespan.startup.failed", "message": "missing holds no model"}]


@pytest.mark.slow
def test_replicas_on_ray_score(tmp_path: Path) -> None:
    (port,) = free_ports()
    deployment = Deployment("rewards", port=port, env={"PYTHONPATH": str(ROOT)})
    deployed = deploy(Factory(tmp_path), deployment, num_cpus=2)
    try:
        items = [{"prompt": "p", "reference": "r", "output": str(n)} for n in range(20)]
        answer = httpx.post(f"{deployed.url}/v1/score", json={"items": items}, timeout=60, trust_env=False)
        assert [one["reward"] for one in answer.json()["data"]] == [float(n) for n in range(20)]
        assert httpx.get(f"{deployed.url}/ready", timeout=60, trust_env=False).status_code == 200
    finally:
        deployed.close()
    assert (tmp_path / "closed").exists(), "the scorer was closed in order"
