"""How often a robot's policy succeeds, by the simulator's truth: from hard resets, and in a chain without any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.protocols import Metrics
from rewards.intervals import wilson
from rollouts.envs.reset_free import ResetFreeConfig
from rollouts.envs.rollout import Acting, chain, from_hard_resets
from rollouts.envs.types import Episode

CHAIN = "chain"


class RobotEvaluator:
    """Implements :class:`align.protocols.Evaluator` on an environment of its own.

    ``episodes`` attempts at each task from hard resets, and ``lives`` chains of ``episodes_per_life``. Seeds do not
    depend on the step: two evaluations set up the same scenes, so that their difference is the policy's.
    ``shoot(step)`` is called after each evaluation, for films.
    """

    def __init__(
        self,
        acting: Acting,
        reset_free: ResetFreeConfig,
        *,
        episodes: int,
        lives: int,
        episodes_per_life: int,
        seed: int,
        shoot: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._acting, self._reset_free = acting, reset_free
        self._episodes, self._lives, self._per_life, self._seed = episodes, lives, episodes_per_life, seed
        self._shoot = shoot
        self.results: dict[int, dict[str, tuple[int, int]]] = {}
        """By step, successes and attempts of each task from hard resets, and of the chain."""

    def evaluate(self, step: int) -> Metrics:
        hard = from_hard_resets(self._acting, self._episodes, self._reset_free.max_steps, self._seed)
        lives = chain(self._acting, self._lives, self._per_life, self._reset_free, self._seed)
        kinds: dict[str, list[Episode]] = {
            **{task.name: [e for e in hard if e.task.name == task.name] for task in self._acting.env.tasks},
            CHAIN: lives,
        }
        counts = {kind: _count(episodes) for kind, episodes in kinds.items() if episodes}
        self.results[step] = counts
        self._shoot(step)
        return {**_metrics(counts), **_lengths(kinds)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "results": {str(step): {k: list(v) for k, v in counts.items()} for step, counts in self.results.items()}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.results = {
            int(step): {kind: (done, tried) for kind, (done, tried) in counts.items()}
            for step, counts in state["results"].items()
        }


def _count(episodes: Sequence[Episode]) -> tuple[int, int]:
    return sum(episode.succeeded for episode in episodes), len(episodes)


def _metrics(counts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    tasks = [value for kind, value in counts.items() if kind != CHAIN]
    if tasks:
        done, tried = sum(d for d, _ in tasks), sum(t for _, t in tasks)
        metrics |= {"eval/success": done / tried}
        metrics |= {f"eval/success.{kind}": d / t for kind, (d, t) in counts.items() if kind != CHAIN}
    if CHAIN in counts:
        done, tried = counts[CHAIN]
        low, high = wilson(done, tried)
        metrics |= {"eval/chain_success": done / tried, "eval/chain_low": low, "eval/chain_high": high}
    return metrics


def _lengths(kinds: Mapping[str, Sequence[Episode]]) -> dict[str, float]:
    every = [len(episode) for episodes in kinds.values() for episode in episodes]
    return {"eval/episode_length": sum(every) / len(every)} if every else {}
