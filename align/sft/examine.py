"""Held-out accuracy before and after a warm start, with the transformers engine in this process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.evaluate import TextEvaluator
from align.sft.config import ExploreExecuteData, SFTRun
from align.tracking.samples import SampleRow, WatchedScorer, sample_rows
from rewards.adherence import violation
from rewards.verifiers import VerifierScorer
from rollouts.chat import ChatRenderer
from rollouts.collector import EngineSupervisor
from rollouts.engines.base import Engine, SamplingParams
from rollouts.engines.hf_engine import HFEngine
from rollouts.explore_execute import ExploreExecuteEngine, line_end_ids, split
from rollouts.models import load_tokenizer
from rollouts.prompts import question_of
from rollouts.types import Prompt, Rollout

SAMPLED, TWO_PHASE = "sampled", "two_phase"
SAMPLES_SHOWN = 4

Results = dict[str, list[float | None]]


class Examiner:
    """Asks the held-out problems with the same random numbers every time (:class:`align.evaluate.TextEvaluator`).

    ``eval/*`` are sampled answers; ``eval/two_phase_*``, where the run wants them, those with a sampled plan and a
    greedy execution; ``eval/plan_adherence``, of an explore-execute run, is the share of sampled answers that have a
    plan and carry it out.
    """

    def __init__(self, config: SFTRun, heldout: Sequence[Prompt], model_path: Path) -> None:
        self._config = config
        self._heldout = heldout
        self._tokenizer = load_tokenizer(model_path)
        self._renderer = ChatRenderer(self._tokenizer)
        evaluation = config.evaluation
        self._params = SamplingParams(
            evaluation.max_new_tokens, self._renderer.stop_token_ids, temperature=evaluation.temperature
        )
        self._context = max(len(self._renderer.prompt_ids(p)) for p in heldout) + evaluation.max_new_tokens
        self.results: dict[str, Results] = {SAMPLED: {}, TWO_PHASE: {}}
        """By way of decoding and step, the share of right answers of every problem; None where none was scored."""
        self.samples: list[SampleRow] = []
        """Some answers of the last examination."""

    def examine(self, policy: Path, step: int) -> dict[str, float]:
        """The metrics of the model in the folder ``policy``."""
        evaluation = self._config.evaluation
        engine = HFEngine(policy, max_context=self._context, dtype=self._config.dtype, batch_size=evaluation.batch_size)
        try:
            metrics, rollouts = self._measure(engine, step, SAMPLED)
            if isinstance(self._config.data, ExploreExecuteData):
                metrics["eval/plan_adherence"] = adherence(rollouts)
            if evaluation.plan_tokens:
                two_phase = ExploreExecuteEngine(
                    engine,
                    plan_end_ids=line_end_ids(self._tokenizer),
                    max_plan_tokens=evaluation.plan_tokens,
                )
                more, _ = self._measure(two_phase, step, TWO_PHASE)
                metrics |= {name.replace("eval/", "eval/two_phase_"): value for name, value in more.items()}
        finally:
            engine.close()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {decoding: dict(results) for decoding, results in self.results.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.results = {decoding: dict(results) for decoding, results in state.items()}

    def _measure(self, engine: Engine, step: int, decoding: str) -> tuple[dict[str, float], Sequence[Rollout]]:
        scorer = WatchedScorer(VerifierScorer(threshold=self._config.evaluation.threshold))
        evaluator = TextEvaluator(
            EngineSupervisor(engine, ()),
            self._heldout,
            self._renderer,
            scorer,
            self._params,
            samples_per_prompt=self._config.evaluation.samples_per_prompt,
            threshold=self._config.evaluation.threshold,
            seed=self._config.seed,
        )
        metrics = evaluator.evaluate(step)
        self.results[decoding][str(step)] = evaluator.results[step]
        rollouts, scores = scorer.last
        if decoding == SAMPLED:
            self.samples = sample_rows(rollouts, scores, (), SAMPLES_SHOWN)
        return metrics, rollouts


def adherence(rollouts: Sequence[Rollout]) -> float:
    """The share of all completions that are a plan and its execution, the one adhering to the other."""
    answers = [(question_of(r.prompt), split(c.text)) for r in rollouts for c in r.completions]
    adhering = sum(parts is not None and violation(question, *parts) is None for question, parts in answers)
    return adhering / len(answers)
