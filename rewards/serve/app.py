"""The app: native endpoints, the dialects of other servers, and operations, around one scoring service."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from rewards.serve import dialects, native, operations, refusals
from rewards.serve.desk import Desk
from rewards.serve.exposition import Meters
from rewards.serve.middleware import Bearer, BoundedBody, Observed
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits

DESCRIPTION = """Rewards of a policy discriminator (POLAR): how much a candidate looks as if the policy that wrote the
reference had written it, given the prompt. Rewards are raw, unbounded numbers: comparable between candidates of one
prompt and reference, with no zero point.

As many answers as items, in the same order. An item that fails has an error and never a number; where a dialect cannot
say so of one item, the whole request is refused and the message names the item.

Every request may say in the header X-Deadline-S how many seconds it has. Every answer has an X-Request-ID.
"""


def create_app(
    service: ScoringService,
    *,
    limits: Limits,
    token: str | None = None,
    references: Mapping[str, str] | None = None,
    swappable: bool = True,
    body_timeout_s: float = 60.0,
) -> FastAPI:
    """The app around ``service``, which the caller starts and closes.

    ``token``: every endpoint but probes and documentation wants it; without one, weights cannot be swapped. Empty is
    refused with ``ValueError``. ``swappable`` is false where this is one of several apps behind an address, whose
    weights must not differ. ``references`` maps prompts to references, for dialects whose requests have none.
    ``body_timeout_s`` bounds how long a body may take to arrive.
    """
    if token == "":
        raise ValueError("the token is empty: give one, or None for a server without")
    app = FastAPI(
        title="Polestar reward scoring", version=_version(), description=DESCRIPTION, docs_url=None, redoc_url=None
    )
    meters = Meters(service)
    desk = Desk(service, limits, meters)
    refusals.install(app)
    app.include_router(native.router(desk))
    for router in dialects.routers(desk, references or {}):
        app.include_router(router)
    app.include_router(operations.router(desk, guarded=token is not None, swappable=swappable))
    operations.add_manual(app)
    # The last one added is the outermost.
    app.add_middleware(BoundedBody, max_bytes=limits.max_body_bytes, timeout_s=body_timeout_s)
    if token is not None:
        app.add_middleware(Bearer, token=token)
    app.add_middleware(Observed, meters=meters)
    return app


def _version() -> str:
    try:
        return version("polestar-align")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"
