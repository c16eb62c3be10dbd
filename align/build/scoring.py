"""``align score`` and ``align serve --ray``: the scorer that the loop uses, for files and behind an address."""

import signal
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rewards.serve.main import ServeSettings

_print = partial(print, flush=True)


def serve_on_ray(
    settings: "ServeSettings",
    replicas: int,
    num_cpus: float,
    num_gpus: float = 0.0,
    address: str | None = None,
    announce: Callable[[str], None] = _print,
) -> int:
    """Serves from ``replicas`` on Ray Serve until SIGTERM or Ctrl-C, then lets them drain. Returns 0.

    Each replica books ``num_cpus`` and ``num_gpus`` and holds the whole model. ``address`` is that of a Ray cluster;
    None joins the job's, or starts one on this machine. Raises :class:`cluster.errors.HostError` when the replicas
    cannot start, :class:`rewards.errors.RewardError` for a token or references that cannot be had.
    """
    from cluster.serve import Deployment, deploy
    from rewards.polar.model import resolve_polar
    from rewards.serve.main import Replica, read_token
    from rewards.serve.references import load_references

    # Mistakes are found here, and models converted once, before several replicas do it at the same time.
    token = read_token(settings.token_env)
    if settings.references is not None:
        load_references(settings.references)
    resolve_polar(settings.model)
    name = settings.name or settings.model
    deployment = Deployment(
        "scores",
        host=settings.host,
        port=settings.port,
        replicas=replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        drain_s=settings.drain_s,
        env={settings.token_env: token} if settings.token_env and token else {},
    )
    with closing(deploy(Replica(settings), deployment, address=address)) as deployed:
        announce(f"serving {name} on {deployed.url} from {replicas} replica(s) (manual: /docs)")
        announce(f"{name} is ready")
        _wait_for_the_end()
    return 0


def _wait_for_the_end() -> None:
    """Until Ctrl-C or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)


def score(
    source: Path,
    target: Path,
    model: str,
    url: str | None,
    backend: Literal["vllm", "transformers"],
    max_context: int | None,
) -> int:
    """Scores ``source`` into ``target``, or goes on with it; returns 1 where an item has no score.

    Raises :class:`rewards.errors.RewardError` and what opening the model raises.
    """
    from rewards.polar.model import resolve_polar
    from rewards.polar.scorer import open_scorer
    from rewards.serve.client import RewardClient
    from rewards.serve.files import folder_identity, score_file
    from rewards.serve.progress import ProgressBar

    with ExitStack() as stack:
        if url is not None:
            client = stack.enter_context(RewardClient(url))
            done = score_file(source, target, client, progress=ProgressBar(source.name))
        else:
            folder = resolve_polar(model)
            scorer = stack.enter_context(closing(open_scorer(folder, backend=backend, max_context=max_context)))
            identity = folder_identity(model, folder)
            done = score_file(source, target, scorer, identity=lambda: identity, progress=ProgressBar(source.name))
    print(f"{done.items} items scored, {done.failed} without a score, {done.kept} kept from before: {target}")
    return 1 if done.failed else 0
