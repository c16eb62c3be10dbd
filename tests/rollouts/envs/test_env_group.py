"""Several collectors as one: the order of episodes, what is added up, who else is told of new weights."""

import threading
from typing import Any

import pytest

from rollouts.envs.group import EnvCollectorGroup
from rollouts.types import WeightUpdate


class Collector:
    def __init__(self, name: str, episodes: int, barrier: threading.Barrier | None = None) -> None:
        self.name, self.episodes, self.barrier = name, episodes, barrier
        self.versions: list[int] = []

    def collect(self, step: int) -> tuple[list[Any], dict[str, float]]:
        if self.barrier is not None:
            self.barrier.wait(10)
        return [f"{self.name}{i}" for i in range(self.episodes)], {
            "collect/episodes": self.episodes,
            "collect/train_success": 1.0 / self.episodes,
            "collect/interventions_total": 1,
            "collect/episodes_total": 10.0 * self.episodes,
            "collect/interventions_per_100_episodes": 10.0 / self.episodes,
        }

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        self.versions.append(update.version)
        return {"sync/version": update.version}

    def state_dict(self) -> dict[str, Any]:
        return {"versions": list(self.versions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.versions = state["versions"]


def test_they_work_at_the_same_time_and_their_episodes_keep_the_order() -> None:
    together = threading.Barrier(2)  # breaks unless both collect at once
    group = EnvCollectorGroup([Collector("a", 2, together), Collector("b", 1, together)])
    episodes, metrics = group.collect(1)
    assert episodes == ["a0", "a1", "b0"]
    assert metrics["collect/episodes"] == 3
    assert metrics["collect/train_success"] == pytest.approx(0.75)
    assert metrics["collect/interventions_per_100_episodes"] == pytest.approx(100 * 2 / 30)


def test_everybody_gets_the_weights() -> None:
    told: list[int] = []
    collectors = [Collector("a", 1), Collector("b", 1)]
    group = EnvCollectorGroup(collectors, [lambda update: told.append(update.version)])
    assert group.load_weights(WeightUpdate(7, "file:/w")) == {"sync/version": 7}
    assert [c.versions for c in collectors] == [[7], [7]] and told == [7]
    other = EnvCollectorGroup([Collector("a", 1), Collector("b", 1)])
    other.load_state_dict(group.state_dict())
    assert other.state_dict() == group.state_dict()


def test_a_group_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EnvCollectorGroup([])
