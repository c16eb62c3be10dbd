"""From a preference recipe to the parts that sample, judge and evaluate text."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.recipe import PreferenceRecipe
from align.recipe.judgement import CallableJudge, CheckedReward, Endpoint, JudgeLabel, Label
from align.recipe.rollout import Engine, Prompts, PromptSource, Rollout


@dataclass(frozen=True, slots=True)
class Sampling:
    """What sampling needs before an engine is there: prompts, their rendering, and how to sample."""

    train: list[Any]
    heldout: list[Any]
    renderer: Any
    params: Any


def sampling(prompts: Prompts, rollout: Rollout, renderer: Any) -> Sampling:
    """Reads the prompts. Raises :class:`rollouts.prompts.PromptError` when one does not fit the engine's context."""
    from rollouts.collector import check_lengths
    from rollouts.engines.base import SamplingParams

    heldout, train = load_prompts(prompts)
    params = SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        stop_token_ids=renderer.stop_token_ids,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_new_tokens=rollout.min_new_tokens,
    )
    check_lengths([*train, *heldout], renderer, params, rollout.engine.max_context)
    return Sampling(train, heldout, renderer, params)


def engine_factory(engine: Engine, model_path: Path, dtype: str, seed: int) -> Callable[[], Any]:
    """What builds the engine, in whichever process it is called."""
    options = engine.model_dump(exclude={"type"})
    if engine.type == "vllm":

        def build_vllm() -> Any:
            from rollouts.engines.vllm_engine import VLLMEngine

            return VLLMEngine(model_path, dtype=dtype, seed=seed, **options)

        return build_vllm

    def build_transformers() -> Any:
        from rollouts.engines.hf_engine import HFEngine

        return HFEngine(model_path, dtype=dtype, **options)

    return build_transformers


def collector(recipe: PreferenceRecipe, rollout: Rollout, sampling: Sampling, supervisor: Any, model_path: Path) -> Any:
    """The collector of a run that samples."""
    from rollouts.collector import CollectConfig, TextCollector
    from rollouts.prompts import PromptStream

    return TextCollector(
        supervisor,
        PromptStream(sampling.train, recipe.seed),
        sampling.renderer,
        sampling.params,
        CollectConfig(
            prompts_per_step=rollout.prompts_per_step,
            samples_per_prompt=rollout.samples_per_prompt,
            reference_samples=rollout.reference_samples,
            reference_ahead=rollout.reference_ahead,
            reference_uri=f"file:{model_path / 'model.safetensors'}",
            seed=recipe.seed,
        ),
    )


def scorer(reward: CheckedReward, stack: ExitStack) -> Any:
    """What scores completions one by one; connections are given back when ``stack`` ends."""
    match reward.type:
        case "verifier":
            from rewards.verifiers import VerifierScorer

            return VerifierScorer(reward.extract, reward.threshold)
        case "callable":
            from rewards.callable_scorer import CallableScorer

            return CallableScorer(reward.function, reward.form)
        case "remote":
            from rewards.remote import RemoteScorer

            return stack.enter_context(closing(RemoteScorer(_endpoint(reward))))


@dataclass(frozen=True, slots=True)
class Show:
    """Where samples are shown: every ``every`` steps, those of ``rows`` prompts."""

    observe: Callable[[Any], None]
    every: int
    rows: int


def labeller(label: Label, reward_scorer: Any, seed: int, show: Show, stack: ExitStack) -> Any:
    """What makes pairs of completions; connections are given back when ``stack`` ends."""
    from align.tracking.samples import WatchedLabeller, WatchedScorer
    from rewards.labeller import LabelConfig, PairLabeller

    if label.type == "judge":
        return WatchedLabeller(_judged(label, seed, stack), None, show.observe, every=show.every, limit=show.rows)
    watched = WatchedScorer(reward_scorer)
    config = LabelConfig(
        label=label.type,
        temperature=1.0 if label.type == "argmax" else label.temperature,
        pairing=label.pairing,
        ties=label.ties,
        tie_tolerance=label.tie_tolerance,
        seed=seed,
    )
    return WatchedLabeller(PairLabeller(watched, config), watched, show.observe, every=show.every, limit=show.rows)


def evaluator(recipe: PreferenceRecipe, checker: Any, reward: Any, sampling: Sampling, supervisor: Any) -> Any:
    """What measures the policy on the held-out prompts: right answers by ``checker``, and the mean of ``reward``."""
    from align.evaluate import TextEvaluator

    evaluation, checked = recipe.evaluation, recipe.checked_by
    return TextEvaluator(
        supervisor,
        sampling.heldout,
        sampling.renderer,
        checker,
        replace(sampling.params, temperature=evaluation.temperature, top_p=1.0, top_k=0),
        samples_per_prompt=evaluation.samples_per_prompt,
        threshold=checked.threshold if checked else 0.0,
        seed=recipe.seed,
        reward=reward,
    )


def probe_ids(sampling: Sampling, max_context: int) -> tuple[int, ...]:
    """The first problem with its answer: a sequence of the kind that the run is about."""
    prompt = sampling.train[0]
    answer = sampling.renderer.answer_ids(prompt.reference or prompt.answer or "yes")
    return (*sampling.renderer.prompt_ids(prompt), *answer)[: max_context - 1]


def load_prompts(prompts: Prompts) -> tuple[list[Any], list[Any]]:
    """Held-out prompts, and training prompts none of which ask the same."""
    from rollouts.prompts import question_of

    heldout = load_source(prompts.heldout)
    return heldout, load_source(prompts.train, exclude=frozenset(question_of(p) for p in heldout))


def load_source(source: PromptSource, *, exclude: frozenset[str] = frozenset()) -> list[Any]:
    """The prompts of one source, without those that ask a question of ``exclude``."""
    from rollouts.prompts import gym_prompts, hub_records, jsonl_records, record_prompts

    if source.type == "gym":
        return gym_prompts(source.task, size=source.size, seed=source.seed, config=source.config, exclude=exclude)
    if source.type == "jsonl":
        records, name = jsonl_records(Path(source.path)), source.path
    else:
        records, name = hub_records(source.name, source.split), f"hub:{source.name}"
    return record_prompts(
        records,
        source=name,
        prompt_field=source.prompt_field,
        reference_field=source.reference_field,
        answer_field=source.answer_field,
        size=source.size,
        exclude=exclude,
    )


def _judged(label: JudgeLabel, seed: int, stack: ExitStack) -> Any:
    from rewards.judged_labeller import JudgedLabeller, JudgeLabelConfig

    config = JudgeLabelConfig(
        label=label.label,
        pairing=label.pairing,
        ties=label.ties,
        tie_tolerance=label.tie_tolerance,
        both_orders=label.both_orders,
        seed=seed,
    )
    return JudgedLabeller(_judge(label, stack), config)


def _judge(label: JudgeLabel, stack: ExitStack) -> Any:
    from rewards import judges

    judge = label.judge
    if isinstance(judge, CallableJudge):
        return judges.CallableJudge(judge.function, judge.form)
    return stack.enter_context(closing(judges.RemoteJudge(_endpoint(judge))))


def _endpoint(section: Endpoint) -> Any:
    from rewards.endpoint import EndpointConfig

    return EndpointConfig(
        url=section.url,
        timeout_s=section.timeout_s,
        retries=section.retries,
        batch_size=section.batch_size,
        token_env=section.token_env,
    )
