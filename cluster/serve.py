"""Any ASGI app on Ray Serve: replicas behind one HTTP address, which finish what they have before they end."""

import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from cluster.errors import HostError

if TYPE_CHECKING:
    from cluster.session import RaySession

Message = MutableMapping[str, Any]
ASGIApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_ONGOING: Final = 4096
"""Requests that one replica works on at a time: the app, which knows what they cost, refuses what is too much."""

_POLL_SECONDS: Final = 1.0
_PROXY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """How an app is deployed.

    ``replicas`` of it answer at ``host:port``; each books ``num_cpus`` and ``num_gpus`` and has ``env`` added to its
    environment. A replica that ends gets ``drain_s`` seconds to finish its requests and to run the app's own shutdown.
    ``start_s`` bounds how long the first start is waited for.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    drain_s: float = 30.0
    start_s: float = 600.0
    env: Mapping[str, str] = field(default_factory=dict)


def deploy(
    factory: Callable[[], ASGIApp],
    deployment: Deployment,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    object_store_mib: int = 256,
) -> "Deployed":
    """Runs ``factory()`` in each replica and waits until all of them answer.

    ``factory`` must be picklable, and what it imports must be importable by the replicas. Ray is found as
    :func:`cluster.host.connect` finds it: a joined one goes on after :meth:`Deployed.close`, one that was started here
    ends. Raises :class:`cluster.errors.HostError` when the app cannot be started; nothing is then left running.
    """
    if not re.fullmatch(r"[\w.-]+", deployment.name):
        raise HostError(f"app name {deployment.name!r} is not fit for a file name: choose another")
    if deployment.replicas < 1:
        raise HostError(f"an app needs 1 replica or more, not {deployment.replicas}")
    from cluster.session import RaySession  # imports ray

    session = RaySession(address, num_cpus, None, object_store_mib)
    try:
        session.check(deployment.name, {"CPU": deployment.num_cpus, "GPU": deployment.num_gpus})
        _run(factory, deployment)
    except BaseException:
        session.close()
        raise
    deployed = Deployed(deployment, session)
    try:
        deployed.wait_until_ready()
    except BaseException:
        deployed.close()
        raise
    return deployed


@final
class Deployed:
    """An app that is being served. Close it: what was started here then ends, and nothing else."""

    def __init__(self, deployment: Deployment, session: "RaySession") -> None:
        self._deployment, self._session = deployment, session
        self._closed = False

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self._deployment.host}:{self._deployment.port}"

    def running(self) -> int:
        """How many replicas answer."""
        return self._counts().get("RUNNING", 0)

    def wait_until_ready(self) -> None:
        """Waits for every replica; :class:`cluster.errors.HostError` when that fails or takes too long."""
        name, wanted = self._deployment.name, self._deployment.replicas
        until = time.monotonic() + self._deployment.start_s
        while self.running() < wanted:
            status, message = self._status()
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise HostError(f"app {name!r} cannot be started: {_last_line(message)}")
            if time.monotonic() > until:
                raise HostError(
                    f"{self.running()} of {wanted} replicas of {name!r} run after {self._deployment.start_s:g} s: "
                    "look at the replicas' logs in Ray's session folder, or lower what each books"
                )
            time.sleep(_POLL_SECONDS)
        self._check_address()

    def close(self) -> None:
        """Lets the replicas finish, then takes the app down. May be called twice."""
        if self._closed:
            return
        self._closed = True
        from ray import serve

        try:
            # Waits for the replicas, each of which has ``drain_s`` seconds.
            serve.delete(self._deployment.name)
        finally:
            self._session.close()

    def _check_address(self) -> None:
        until = time.monotonic() + _PROXY_SECONDS
        host, port = self._deployment.host, self._deployment.port
        while True:
            try:
                socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), _PROXY_SECONDS).close()
                return
            except OSError as error:
                # A Ray that was joined may have its Serve already; that keeps the address it was started with.
                if time.monotonic() > until:
                    raise HostError(
                        f"nothing answers at {self.url} ({error}): is Ray Serve there already at another address? "
                        "Give that one, or end it with `serve shutdown`"
                    ) from error
                time.sleep(_POLL_SECONDS)

    def _counts(self) -> Mapping[str, int]:
        from ray import serve

        app = serve.status().applications.get(self._deployment.name)
        counts: dict[str, int] = {}
        for part in app.deployments.values() if app else ():
            for state, number in part.replica_states.items():
                counts[str(state)] = counts.get(str(state), 0) + number
        return counts

    def _status(self) -> tuple[str, str]:
        from ray import serve

        app = serve.status().applications.get(self._deployment.name)
        if app is None:
            return "NOT_STARTED", ""
        reasons = [part.message for part in app.deployments.values() if part.message]
        return str(getattr(app.status, "value", app.status)), "\n".join([app.message, *reasons])


def _run(factory: Callable[[], ASGIApp], deployment: Deployment) -> None:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    def build() -> ASGIApp:  # Serve calls nothing but plain functions
        return factory()

    env = {"runtime_env": {"env_vars": dict(deployment.env)}} if deployment.env else {}
    replica = serve.deployment(
        name=deployment.name,
        num_replicas=deployment.replicas,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=deployment.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": deployment.num_cpus, "num_gpus": deployment.num_gpus, **env},
    )(serve.ingress(build)())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": deployment.host, "port": deployment.port},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        serve._run(replica.bind(), _blocking=False, name=deployment.name, route_prefix="/")
    except (RuntimeError, ValueError, TypeError) as error:
        raise HostError(f"app {deployment.name!r} cannot be deployed: {_last_line(str(error))}") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"
