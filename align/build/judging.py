"""What judges the completions of a preference run: what it learns from, what checks it, and what is watched."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.build import text
from align.build.hosting import host_reward
from align.recipe import PreferenceRecipe
from align.recipe.judgement import CheckedReward, PolarReward
from rewards.checked_scorer import CheckedScorer
from rollouts.engines.recovery import call_again


class Judging:
    """The scorers of a run.

    ``train`` makes the pairs. ``checker`` says which held-out answers are right. Where that is not what the policy
    learns from, ``watched`` is the reward whose mean on held-out answers is reported beside their accuracy. Each is
    None where the recipe has none. A POLAR model is started by :meth:`open`, in a process of its own on Ray.
    """

    def __init__(self, recipe: PreferenceRecipe, stack: ExitStack) -> None:
        self._recipe = recipe
        self._items: Any = None
        self.train: Any = None
        self.watched: Any = None
        reward, checked = recipe.reward, recipe.checked_by
        self.checker: Any = text.scorer(checked, stack) if checked else None
        if reward == checked:
            self.train = self.checker
        elif reward is not None:
            self.train, self.watched = self._polar(reward) if isinstance(reward, PolarReward) else _twice(reward, stack)
            if checked is not None and self.checker is not None:
                self.train = CheckedScorer(self.train, self.checker, checked.threshold)

    @property
    def hosts_a_model(self) -> bool:
        """Whether :meth:`open` has anything to start."""
        return isinstance(self._recipe.reward, PolarReward)

    def open(self, place: Any) -> None:
        """Starts the reward model where the recipe wants it; nothing where there is none."""
        recipe, reward = self._recipe, self._recipe.reward
        if isinstance(reward, PolarReward):
            from cluster.host import HostError

            part = host_reward(place, recipe.cluster, polar_factory(reward, self._folder))
            self._items = Supervised(part, (HostError,))

    def _polar(self, reward: PolarReward) -> tuple[Any, Any]:
        from rewards.polar.model import resolve_polar
        from rewards.polar.reward import PolarReward as Scorer

        self._folder = resolve_polar(reward.model)

        def score_items(items: Sequence[Any]) -> Any:
            return self._items.score_items(items)

        # Two, since held-out answers must not move the running statistics.
        learnt = Scorer(score_items, combine=reward.combine, normalise=reward.normalise)
        return learnt, Scorer(score_items, combine=reward.combine, normalise="none")


class Supervised:
    """A hosted POLAR scorer that is brought back when it fails, and asked again: scoring changes nothing."""

    def __init__(self, part: Any, recoverable: tuple[type[Exception], ...]) -> None:
        self._part = part
        self._recoverable = recoverable

    def score_items(self, items: Sequence[Any]) -> Any:
        return call_again(lambda _: self._part.score_items(items), self._part, self._recoverable)


def polar_factory(reward: PolarReward, folder: Path) -> Callable[[], Any]:
    """What builds the scorer, in whichever process it is called."""

    def build() -> Any:
        from rewards.polar.scorer import open_scorer

        options: dict[str, Any] = {"kv_cache_gib": reward.kv_cache_gib} if reward.backend == "vllm" else {}
        return open_scorer(
            folder, backend=reward.backend, max_context=reward.max_context, dtype=reward.dtype, **options
        )

    return build


def _twice(reward: CheckedReward, stack: ExitStack) -> tuple[Any, Any]:
    scorer = text.scorer(reward, stack)
    return scorer, scorer
