"""Where the parts of a run live, from the recipe's cluster section."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.recipe.running import Cluster

# An actor's methods run beside its main thread. glibc gives such a thread an arena of small heaps, maps large buffers
# afresh and returns everything at every chance: page faults then take a third of a training step on the CPU.
# Threads that wait for each other spin for a few milliseconds by default, and lose whole time slices when anything else
# wants the core. Spinning a tenth of that costs nothing alone (11.7 s a step of `align bench step`, 13.0 without any
# spinning) and 38 s beside two busy processes.
ACTOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "GOMP_SPINCOUNT": "20000",
}


def connect_to(cluster: Cluster, logs: Path) -> Any:
    """This process, or the Ray cluster that the recipe names; parts write to ``logs``."""
    from cluster.host import connect

    if cluster.type == "local":
        return connect("local", log_dir=logs)
    address = None if cluster.address == "auto" else cluster.address
    return connect("ray", address=address, num_cpus=cluster.num_cpus, log_dir=logs)


def host_engine(place: Any, cluster: Cluster, factory: Callable[[], Any], name: str) -> Any:
    """An engine, which is built again when its process ends."""
    if cluster.type == "local":
        return place.host(factory, name=name)
    return _host(place, cluster, factory, name, cluster.engine_resources, max_restarts=3)


def host_collector(place: Any, cluster: Cluster, factory: Callable[[], Any], name: str) -> Any:
    """A robot's collector. One that comes back has lost its scene: the run ends, and continues from its checkpoint."""
    if cluster.type == "local":
        return place.host(factory, name=name)
    return _host(place, cluster, factory, name, cluster.engine_resources, max_restarts=0)


def host_learner(place: Any, cluster: Cluster, factory: Callable[[], Any]) -> Any:
    """The learner. One that comes back has lost what it learned: the run ends, and continues from its checkpoint."""
    if cluster.type == "local":
        return place.host(factory, name="learner")
    if not cluster.learner_actor:
        return factory()
    return _host(place, cluster, factory, "learner", cluster.learner_resources, max_restarts=0)


def end_learner(place: Any, learner: Any) -> None:
    """Takes back the published weights, also where the learner's process has died and cannot do it itself."""
    from cluster.host import HostError
    from cluster.weights import SHARED_MEMORY, sweep

    try:
        place.apply(learner, _close)
    except HostError:
        sweep(SHARED_MEMORY)


def _close(part: Any) -> None:
    part.close()


def host_reward(place: Any, cluster: Cluster, factory: Callable[[], Any], callers: int = 1) -> Any:
    """A reward model that serves ``callers`` at once. It has no state, and is built again when its process ends and
    somebody here asks it; the callers of other parts do not come back with it."""
    if cluster.type == "local":
        return place.host(factory, name="reward")
    return _host(place, cluster, factory, "reward", cluster.reward_resources, max_restarts=3, max_concurrency=callers)


def _host(
    place: Any,
    cluster: Any,
    factory: Callable[[], Any],
    name: str,
    section: Any,
    max_restarts: int,
    max_concurrency: int = 1,
) -> Any:
    from cluster.host import Resources

    return place.host(
        factory,
        name=name,
        resources=Resources(section.num_cpus, section.num_gpus),
        deadline_s=cluster.deadline_s,
        start_deadline_s=cluster.start_deadline_s,
        env=ACTOR_ENVIRONMENT,
        max_restarts=max_restarts,
        max_concurrency=max_concurrency,
    )
