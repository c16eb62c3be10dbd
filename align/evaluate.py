"""Held-out accuracy of the policy that the engine now holds."""

from collections.abc import Callable, Sequence
from typing import Any

from align.protocols import Evaluator, Metrics
from rewards.intervals import wilson
from rewards.types import ScoreFailure, Scorer
from rollouts.chat import ChatRenderer
from rollouts.collector import EngineSupervisor, request_seed, to_completion
from rollouts.engines.base import Request, SamplingParams
from rollouts.types import Finish, Origin, Prompt, Rollout


class TextEvaluator:
    """Samples answers to held-out prompts and scores them; implements :class:`align.protocols.Evaluator`.

    An answer counts as right when its score by ``checker`` reaches ``threshold``; without a checker accuracy is not
    measured. Seeds do not depend on the step: two evaluations ask the same problems with the same random numbers, so
    that their difference is the policy's. An answer that could not be scored is left out and counted in
    ``eval/failed``. ``reward`` is what the policy learns from, where that is something else: its mean on the same
    answers is reported beside their accuracy.
    """

    def __init__(
        self,
        engine: EngineSupervisor,
        prompts: Sequence[Prompt],
        renderer: ChatRenderer,
        checker: Scorer | None,
        params: SamplingParams,
        *,
        samples_per_prompt: int,
        threshold: float,
        seed: int,
        reward: Scorer | None = None,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._renderer = renderer
        self._checker = checker
        self._reward = reward
        self._params = params
        self._samples = samples_per_prompt
        self._threshold = threshold
        self._seed = seed
        self.results: dict[int, list[float | None]] = {}
        """By step, the share of right answers of every problem, in order; None where no answer could be scored."""

    def evaluate(self, step: int) -> dict[str, float]:
        requests = [
            Request(
                self._renderer.prompt_ids(p),
                tuple(request_seed(self._seed, f"heldout:{p.id}", Origin.POLICY, i, 0) for i in range(self._samples)),
            )
            for p in self._prompts
        ]
        results = self._engine.generate(requests, self._params)
        rollouts = [
            Rollout(p, r.prompt_ids, tuple(to_completion(s, self._renderer, Origin.POLICY, 0) for s in samples))
            for p, r, samples in zip(self._prompts, requests, results, strict=True)
        ]
        completions = [c for rollout in rollouts for c in rollout.completions]
        return {
            "eval/length_mean": sum(len(c.token_ids) for c in completions) / len(completions),
            "eval/contain_eos_token": sum(c.finish is Finish.STOP for c in completions) / len(completions),
            **(self._accuracy(self._checker, rollouts, step) if self._checker else {}),
            **(_mean_reward(self._reward, rollouts) if self._reward else {}),
        }

    def _accuracy(self, checker: Scorer, rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
        scores = checker.score(rollouts)
        right = [[float(s >= self._threshold) for s in row if not isinstance(s, ScoreFailure)] for row in scores]
        self.results[step] = [sum(row) / len(row) if row else None for row in right]
        flat = [r for row in right for r in row]
        metrics = {"eval/failed": float(sum(map(len, scores)) - len(flat))}
        if flat:
            accuracy = sum(flat) / len(flat)
            # Answers to one problem are not independent, so that the interval counts problems, not answers.
            low, high = wilson(accuracy * len(right), len(right))
            metrics |= {"eval/accuracy": accuracy, "eval/accuracy_low": low, "eval/accuracy_high": high}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"results": {str(step): list(values) for step, values in self.results.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.results = {int(step): list(values) for step, values in state["results"].items()}


def _mean_reward(reward: Scorer, rollouts: Sequence[Rollout]) -> dict[str, float]:
    numbers = [s for row in reward.score(rollouts) for s in row if not isinstance(s, ScoreFailure)]
    return {"eval/reward_mean": sum(numbers) / len(numbers)} if numbers else {}


class BestIterate:
    """Keeps the best iterate beside the last: Algorithm 1 of XPO returns the best of all by validation.

    Wraps an evaluator; implements :class:`align.protocols.Evaluator`. ``keep(step)`` is called whenever ``metric``
    rises above all before, the policy at the start included; a metric that is missing is no rise.
    """

    def __init__(self, evaluator: Evaluator, keep: Callable[[int], None], metric: str = "eval/accuracy") -> None:
        self._evaluator = evaluator
        self._keep = keep
        self._metric = metric
        self.step: int | None = None
        self.value: float | None = None

    def evaluate(self, step: int) -> Metrics:
        metrics = self._evaluator.evaluate(step)
        value = metrics.get(self._metric)
        if value is not None and (self.value is None or value > self.value):
            self._keep(step)
            self.step, self.value = step, value
        return metrics if self.step is None else {**metrics, "eval/best_step": float(self.step)}

    def state_dict(self) -> dict[str, Any]:
        return {"evaluator": self._evaluator.state_dict(), "step": self.step, "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._evaluator.load_state_dict(state["evaluator"])
        self.step, self.value = state["step"], state["value"]
