"""Other servers' endpoints, so that their clients can be pointed here unchanged."""

from fastapi import APIRouter

from rewards.serve.desk import Desk
from rewards.serve.dialects import engines, rerank, trainers
from rewards.serve.dialects.common import References


def routers(desk: Desk, references: References) -> list[APIRouter]:
    """All of them; ``references`` serve those whose requests have none."""
    return [engines.router(desk), trainers.router(desk, references), rerank.router(desk, references)]
