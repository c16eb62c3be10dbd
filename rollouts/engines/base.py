"""The Engine Protocol: tokens in, tokens and log-probabilities out, weights swapped in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rollouts.types import Finish, WeightUpdate


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch the filters off.

    ``min_new_tokens == max_new_tokens`` forces the length (benchmarks). ``stop_token_ids`` end a completion and are
    kept as its last token.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt in tokens, and one seed for each completion wanted of it."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion in tokens; ``logprobs`` are of the sampling distribution, in nats, one a token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


class EngineError(RuntimeError):
    """The engine cannot serve; the message says what to do."""


class WeightSyncError(EngineError):
    """The weights that the engine holds are not the ones that were sent; the engine is dead until it is rebuilt."""


@runtime_checkable
class Engine(Protocol):
    """A text generator whose weights can be replaced.

    Implementations: :class:`rollouts.engines.vllm_engine.VLLMEngine`, :class:`rollouts.engines.hf_engine.HFEngine`.
    ``tests/contracts/test_engine.py`` is the definition of what each method must do.
    """

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        """Samples for every request, in order; ``result[i][j]`` belongs to ``requests[i].seeds[j]``.

        Raises ``ValueError`` naming the request when prompt and completion do not fit the context.
        """
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability in nats of every token of every sequence from its second on, at temperature 1."""
        ...

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        """Replace the weights, drop every cache that knew the old ones, and prove it; returns measurements.

        Raises :class:`WeightSyncError` when the proof fails; the engine has then been marked dead and refuses to
        generate until :meth:`rebuild`.
        """
        ...

    def version(self) -> int:
        """The version of the weights in use; 0 for those the engine started with."""
        ...

    def max_context(self) -> int:
        """The longest prompt plus completion, in tokens."""
        ...

    def rebuild(self) -> None:
        """Start afresh from the model's own weights (version 0)."""
        ...

    def close(self) -> None:
        """Free memory and processes; the engine cannot be used afterwards."""
        ...
