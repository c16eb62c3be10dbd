"""An app for replicas, which import it by its name."""

from pathlib import Path

from rewards.serve.app import create_app
from rewards.serve.lifespan import WithLifespan
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits
from tests.rewards.serve.fakes import PlainScorer


class Factory:
    """Builds the app where the replica is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> WithLifespan:
        service = ScoringService(PlainScorer, self.folder, name="plain", canary=None)
        return WithLifespan(create_app(service, limits=Limits()), service, 10.0)
