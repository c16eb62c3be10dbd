"""Collection: seeds, provenance, reference samples drawn once, and engines that fail."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollouts.chat import ChatRenderer
from rollouts.collector import CollectConfig, EngineSupervisor, TextCollector, check_lengths, request_seed
from rollouts.engines.base import EngineError, Request, Sample, SamplingParams
from rollouts.models import load_tokenizer
from rollouts.prompts import PromptStream
from rollouts.types import Finish, Message, Origin, Prompt, WeightUpdate

PARAMS = SamplingParams(max_new_tokens=4, stop_token_ids=(2,))


class ScriptedEngine:
    """A real engine's contract without a model: the samples are a function of weights, prompt and seed."""

    def __init__(self) -> None:
        self.current = WeightUpdate(0, "file:reference")
        self.loads: list[tuple[int, str]] = []
        self.calls: list[int] = []
        self.fail_next: list[Exception] = []
        self.rebuilds = 0

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        if self.fail_next:
            raise self.fail_next.pop(0)
        self.calls.append(sum(len(r.seeds) for r in requests))
        return [[self._sample(r.prompt_ids, seed) for seed in r.seeds] for r in requests]

    def _sample(self, prompt_ids: tuple[int, ...], seed: int) -> Sample:
        rng = random.Random(f"{self.current.version}:{prompt_ids}:{seed}")
        ids = (*(rng.randrange(65, 91) for _ in range(3)), 2)
        return Sample(ids, (-1.0,) * 4, Finish.STOP)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        return [(-1.0,) * (len(s) - 1) for s in sequences]

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        if self.fail_next:
            raise self.fail_next.pop(0)
        self.current = update
        self.loads.append((update.version, update.uri))
        return {"sync/load_s": 0.0}

    def version(self) -> int:
        return self.current.version

    def max_context(self) -> int:
        return 64

    def rebuild(self) -> None:
        self.rebuilds += 1
        self.current = WeightUpdate(0, "file:reference")

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def renderer(tiny_model: Path) -> ChatRenderer:
    return ChatRenderer(load_tokenizer(tiny_model))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", f"q{i}"),)) for i in range(count)]


def collector(renderer: ChatRenderer, engine: ScriptedEngine, count: int = 8, **config: Any) -> TextCollector:
    settings = {
        "prompts_per_step": 2,
        "samples_per_prompt": 3,
        "reference_samples": 1,
        "reference_ahead": 2,
        "reference_uri": "file:reference",
        "seed": 0,
    }
    supervisor = EngineSupervisor(engine, recoverable=(ConnectionError,))
    return TextCollector(
        supervisor, PromptStream(prompts(count), 0), renderer, PARAMS, CollectConfig(**{**settings, **config})
    )


def test_policy_samples_first_then_the_cached_reference_sample(renderer: ChatRenderer) -> None:
    rollouts, metrics = collector(renderer, ScriptedEngine()).collect(1)
    assert [[c.origin for c in r.completions] for r in rollouts] == [[*[Origin.POLICY] * 3, Origin.REFERENCE]] * 2
    assert all(r.completions[0].text == renderer.text(r.completions[0].token_ids) for r in rollouts)
    assert metrics["rollout/completions"] == 6
    assert metrics["rollout/tokens"] == 24


def test_reference_samples_are_drawn_ahead_with_reference_weights_and_only_once(renderer: ChatRenderer) -> None:
    engine = ScriptedEngine()
    one = collector(renderer, engine)
    _, first = one.collect(1)
    one.load_weights(WeightUpdate(1, "file:v1"))
    _, second = one.collect(2)
    assert (first["rollout/reference_completions"], second["rollout/reference_completions"]) == (4, 0)
    assert engine.loads == [(1, "file:v1")]
    _, third = one.collect(3)
    # The bank ran out: reference weights for four samples, and the current ones back.
    assert third["rollout/reference_completions"] == 4
    assert engine.loads == [(1, "file:v1"), (0, "file:reference"), (1, "file:v1")]
    one.collect(4)
    _, again = one.collect(5)  # the second epoch
    assert again["rollout/reference_completions"] == 0


def test_a_reference_sample_does_not_depend_on_when_it_is_drawn(renderer: ChatRenderer) -> None:
    def references(**config: Any) -> dict[str, tuple[int, ...]]:
        one = collector(renderer, ScriptedEngine(), **config)
        drawn: dict[str, tuple[int, ...]] = {}
        for step in range(1, 5):
            drawn |= {r.prompt.id: r.completions[-1].token_ids for r in one.collect(step)[0]}
            one.load_weights(WeightUpdate(step, f"file:v{step}"))
        return drawn

    assert references(reference_ahead=1) == references(reference_ahead=4)


def test_seeds_differ_by_prompt_origin_sample_and_step() -> None:
    seeds = {
        request_seed(run, prompt, origin, sample, step)
        for run in (0, 1)
        for prompt in ("a", "b", "a\0")
        for origin in (Origin.POLICY, Origin.REFERENCE)
        for sample in range(3)
        for step in range(3)
    }
    assert len(seeds) == 2 * 3 * 2 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("error", [EngineError("dead"), ConnectionError("gone")])
def test_a_failed_engine_is_brought_back_with_its_weights_and_gives_the_same_samples(
    renderer: ChatRenderer, error: Exception
) -> None:
    def third_step(fail: bool) -> tuple[list[Any], ScriptedEngine, Mapping[str, float]]:
        engine = ScriptedEngine()
        one = collector(renderer, engine)
        one.collect(1)
        one.load_weights(WeightUpdate(1, "file:v1"))
        if fail:
            engine.fail_next = [error]
        rollouts, metrics = one.collect(2)
        return rollouts, engine, metrics

    calm, _, _ = third_step(fail=False)
    rollouts, engine, metrics = third_step(fail=True)
    assert rollouts == calm
    assert engine.current.version == 1
    assert engine.rebuilds == (1 if isinstance(error, EngineError) else 0)
    assert metrics["rollout/engine_recoveries"] == 1


def test_a_failed_sync_rebuilds_and_sends_the_weights_again(renderer: ChatRenderer) -> None:
    engine = ScriptedEngine()
    one = collector(renderer, engine)
    engine.fail_next = [EngineError("probe failed")]
    assert one.load_weights(WeightUpdate(5, "file:v5"))["sync/version"] == 5
    assert (engine.rebuilds, engine.loads) == (1, [(5, "file:v5")])


def test_an_engine_that_keeps_failing_ends_the_run(renderer: ChatRenderer) -> None:
    engine = ScriptedEngine()
    engine.fail_next = [EngineError(f"dead {i}") for i in range(9)]
    with pytest.raises(EngineError, match="dead 2"):
        collector(renderer, engine).collect(1)


def test_other_errors_are_not_swallowed(renderer: ChatRenderer) -> None:
    engine = ScriptedEngine()
    engine.fail_next = [ValueError("request 0: too long")]
    with pytest.raises(ValueError, match="too long"):
        collector(renderer, engine).collect(1)


def test_resume_keeps_cursor_and_reference_samples(renderer: ChatRenderer) -> None:
    one = collector(renderer, ScriptedEngine())
    one.collect(1)
    other = collector(renderer, ScriptedEngine())
    other.load_state_dict(one.state_dict())
    ours, theirs = one.collect(2), other.collect(2)
    assert ours[0] == theirs[0]
    assert theirs[1]["rollout/reference_completions"] == 0


def test_without_reference_samples_none_are_drawn(renderer: ChatRenderer) -> None:
    rollouts, metrics = collector(renderer, ScriptedEngine(), reference_samples=0).collect(1)
    assert all(c.origin is Origin.POLICY for r in rollouts for c in r.completions)
    assert metrics["rollout/reference_completions"] == 0


def test_a_prompt_that_does_not_fit_is_named(renderer: ChatRenderer) -> None:
    long = Prompt("long", (Message("user", "x" * 100),))
    with pytest.raises(ValueError, match=r"prompt 'long' has \d+ tokens; .* raise rollout.engine.max_context"):
        check_lengths([*prompts(2), long], renderer, PARAMS, max_context=90)
    check_lengths(prompts(2), renderer, PARAMS, max_context=90)
