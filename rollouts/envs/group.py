"""Several robots that practise side by side, and what else must hold the same weights as they."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from rollouts.envs.types import Episode
from rollouts.types import WeightUpdate


class EpisodeCollector(Protocol):
    """A collector of episodes, here or in another process."""

    def collect(self, step: int) -> tuple[Sequence[Episode], dict[str, float]]: ...

    def load_weights(self, update: WeightUpdate) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Follower = Callable[[WeightUpdate], None]


class EnvCollectorGroup:
    """Implements :class:`align.protocols.Collector` over one collector or more.

    They work at the same time where they live in processes of their own; their episodes come in the order of the
    collectors, whoever is done first. Each of ``followers`` is told of every update too: a policy that is evaluated.

    Metrics are means over the collectors, and sums where a name counts (``_total``, episodes, decisions, resets).
    """

    def __init__(self, collectors: Sequence[EpisodeCollector], followers: Sequence[Follower] = ()) -> None:
        if not collectors:
            raise ValueError("a group needs at least one collector")
        self._collectors = tuple(collectors)
        self._followers = tuple(followers)

    def collect(self, step: int) -> tuple[list[Episode], dict[str, float]]:
        if len(self._collectors) == 1:
            episodes, metrics = self._collectors[0].collect(step)
            return list(episodes), metrics
        with ThreadPoolExecutor(len(self._collectors)) as pool:
            found = list(pool.map(lambda collector: collector.collect(step), self._collectors))
        episodes = [episode for part, _ in found for episode in part]
        return episodes, _joined([metrics for _, metrics in found])

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        metrics = [collector.load_weights(update) for collector in self._collectors]
        for follow in self._followers:
            follow(update)
        return metrics[0]

    def state_dict(self) -> dict[str, Any]:
        return {"collectors": [collector.state_dict() for collector in self._collectors]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for collector, part in zip(self._collectors, state["collectors"], strict=True):
            collector.load_state_dict(part)


_COUNTS = ("collect/episodes", "collect/decisions", "collect/hard_resets", "collect/instant", "collect/interventions")


def _joined(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    joined: dict[str, float] = {}
    for name in dict.fromkeys(name for part in metrics for name in part):
        values = [part[name] for part in metrics if name in part]
        counts = name in _COUNTS or name.endswith("_total") or name == "perf/decisions_per_s"
        joined[name] = sum(values) if counts else sum(values) / len(values)
    if "collect/interventions_total" in joined and joined.get("collect/episodes_total"):
        rate = 100.0 * joined["collect/interventions_total"] / joined["collect/episodes_total"]
        joined["collect/interventions_per_100_episodes"] = rate
    return joined
