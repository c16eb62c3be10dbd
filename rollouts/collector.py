"""Text experience: samples of the current policy, and samples of the reference policy drawn once a prompt."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rollouts.chat import ChatRenderer
from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.engines.recovery import RETRIES, call_again
from rollouts.plain import completion_from, plain_completion
from rollouts.prompts import PromptError, PromptStream
from rollouts.types import Completion, Finish, Origin, Prompt, Rollout, WeightUpdate

T = TypeVar("T")


def request_seed(run_seed: int, prompt_id: str, origin: Origin, sample: int, step: int) -> int:
    """63 bits that differ by prompt, origin, sample and step; one seed for all would correlate the samples."""
    key = f"{run_seed}\0{prompt_id}\0{origin}\0{sample}\0{step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """How much is collected in a step. ``reference_ahead`` steps' reference samples are drawn in one go."""

    prompts_per_step: int
    samples_per_prompt: int
    reference_samples: int
    reference_ahead: int
    reference_uri: str
    seed: int


class EngineSupervisor:
    """Calls an engine, and brings it back when it fails: rebuild, the last weights again, the same call again.

    ``recoverable`` are the exceptions after which the call is repeated, at most ``retries`` times; since every
    request carries its seed the repeated call gives the samples that the first would have given.
    """

    def __init__(self, engine: Engine, recoverable: tuple[type[Exception], ...], retries: int = RETRIES) -> None:
        self.engine = engine
        self.recoveries = 0
        self._recoverable = recoverable
        self._retries = retries
        self._current: WeightUpdate | None = None

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        def call(attempt: int) -> list[list[Sample]]:
            if attempt and self._current is not None:
                self.engine.load_weights(self._current)
            return self.engine.generate(requests, params)

        return self._supervised(call)

    def load(self, update: WeightUpdate) -> Mapping[str, float]:
        metrics = self._supervised(lambda _: self.engine.load_weights(update))
        self._current = update
        return metrics

    def _supervised(self, call: Callable[[int], T]) -> T:
        return call_again(call, self.engine, self._recoverable, retries=self._retries, on_failure=self._count_recovery)

    def _count_recovery(self) -> None:
        self.recoveries += 1


class TextCollector:
    """Implements :class:`align.protocols.Collector` for language models."""

    def __init__(
        self,
        supervisor: EngineSupervisor,
        prompts: PromptStream,
        renderer: ChatRenderer,
        params: SamplingParams,
        config: CollectConfig,
    ) -> None:
        self._engine = supervisor
        self._prompts = prompts
        self._renderer = renderer
        self._params = params
        self._config = config
        self._update = WeightUpdate(0, config.reference_uri)
        self._references: dict[str, tuple[Completion, ...]] = {}

    def collect(self, step: int) -> tuple[list[Rollout], dict[str, float]]:
        """The next prompts' rollouts: ``samples_per_prompt`` of the policy, then ``reference_samples`` cached ones."""
        config = self._config
        started = time.perf_counter()
        drawn = self._draw_references()
        prompts = self._prompts.take(config.prompts_per_step)
        ours = self._sample(prompts, Origin.POLICY, config.samples_per_prompt, step)
        elapsed = time.perf_counter() - started
        rollouts = [
            Rollout(prompt, self._renderer.prompt_ids(prompt), (*samples, *self._references.get(prompt.id, ())))
            for prompt, samples in zip(prompts, ours, strict=True)
        ]
        fresh = [c for samples in ours for c in samples]
        tokens = sum(len(c.token_ids) for c in fresh)
        return rollouts, {
            "rollout/completions": len(fresh),
            "rollout/reference_completions": drawn,
            "rollout/tokens": tokens,
            "rollout/tokens_per_s": tokens / elapsed,
            "perf/generate_s": elapsed,
            "rollout/length_mean": tokens / len(fresh),
            "rollout/clipped_ratio": sum(c.finish is Finish.LENGTH for c in fresh) / len(fresh),
            "val/contain_eos_token": sum(c.finish is Finish.STOP for c in fresh) / len(fresh),
            "rollout/engine_recoveries": self._engine.recoveries,
        }

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        """Gives the engine new weights; on failure the engine is rebuilt and given them once more."""
        metrics = dict(self._engine.load(update))
        self._update = update
        return {**metrics, "sync/version": update.version}

    def state_dict(self) -> dict[str, Any]:
        references = {id: [plain_completion(c) for c in cs] for id, cs in self._references.items()}
        return {"prompts": self._prompts.state_dict(), "references": references}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._prompts.load_state_dict(state["prompts"])
        self._references = {id: tuple(completion_from(c) for c in cs) for id, cs in state["references"].items()}

    def _draw_references(self) -> int:
        """Draws the reference policy's samples for prompts that have none yet; returns how many.

        One engine serves both policies: it is given the reference weights, and the current ones back afterwards.
        Drawing for ``reference_ahead`` steps at once makes that exchange rare.
        """
        config = self._config
        if not config.reference_samples:
            return 0
        upcoming = {p.id: p for p in self._prompts.peek(config.prompts_per_step)}
        if all(id in self._references for id in upcoming):
            return 0
        ahead = {p.id: p for p in self._prompts.peek(config.prompts_per_step * config.reference_ahead)}
        missing = [p for id, p in ahead.items() if id not in self._references]
        current = self._update
        if current.version:
            self._engine.load(WeightUpdate(0, config.reference_uri))
        # The step is no part of a reference seed: a prompt's reference sample does not depend on when it is drawn.
        samples = self._sample(missing, Origin.REFERENCE, config.reference_samples, step=0)
        if current.version:
            self._engine.load(current)
        self._references |= {p.id: tuple(c) for p, c in zip(missing, samples, strict=True)}
        return len(missing) * config.reference_samples

    def _sample(self, prompts: Sequence[Prompt], origin: Origin, count: int, step: int) -> list[list[Completion]]:
        seed = self._config.seed
        requests = [
            Request(
                self._renderer.prompt_ids(p), tuple(request_seed(seed, p.id, origin, i, step) for i in range(count))
            )
            for p in prompts
        ]
        version = self._update.version if origin is Origin.POLICY else 0
        results = self._engine.generate(requests, self._params)
        return [[to_completion(s, self._renderer, origin, version) for s in samples] for samples in results]


def to_completion(sample: Sample, renderer: ChatRenderer, origin: Origin, version: int) -> Completion:
    """A sample with its text and provenance."""
    text = renderer.text(sample.token_ids)
    return Completion(sample.token_ids, sample.logprobs, text, sample.finish, origin, version)


def check_lengths(prompts: Sequence[Prompt], renderer: ChatRenderer, params: SamplingParams, max_context: int) -> None:
    """Raises :class:`PromptError` naming the longest prompt when prompt and completion do not fit the context."""
    lengths = [(len(renderer.prompt_ids(p)), p) for p in prompts]
    longest, prompt = max(lengths, key=lambda pair: pair[0])
    if longest + params.max_new_tokens > max_context:
        raise PromptError(
            f"prompt {prompt.id!r} has {longest} tokens; with rollout.max_new_tokens={params.max_new_tokens} it needs "
            f"a context of {longest + params.max_new_tokens}: raise rollout.engine.max_context (now {max_context}), or "
            "shorten the prompts"
        )
