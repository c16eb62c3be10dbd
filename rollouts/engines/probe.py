"""The proof that an engine holds the weights it was sent, shared by all engines.

Weight synchronisation fails silently: packed parameters keep old values, caches outlive the weights they were made
with. So every update is followed by a probe, and an engine that fails it is dead until it is rebuilt.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from rollouts.engines.base import EngineError, WeightSyncError
from rollouts.types import WeightUpdate

LEARNER_MOVED: Final = 1e-3
"""Nats. When the learner's probe moved by more anywhere, the engine's must not be bitwise what it was."""


class Life:
    """Whether an engine may serve."""

    def __init__(self) -> None:
        self._dead: str | None = None

    def require_alive(self) -> None:
        """Raises :class:`EngineError` when the engine is dead."""
        if self._dead is not None:
            raise EngineError(f"the engine is dead ({self._dead}); call rebuild()")

    def kill(self, reason: str) -> None:
        """Refuse to serve from now on."""
        self._dead = reason

    def revive(self) -> None:
        """The engine was built afresh."""
        self._dead = None


class SyncGuard(Life):
    """Whether an engine is alive, which weights it holds, and the last probe."""

    def __init__(self, tolerance: float) -> None:
        if not tolerance > 0:
            raise ValueError(f"probe_tolerance must be positive, not {tolerance}")
        super().__init__()
        self._tolerance = tolerance
        self._version = 0
        self._last: tuple[WeightUpdate, tuple[float, ...]] | None = None

    @property
    def version(self) -> int:
        """The version of the last update that passed its probe; 0 before the first."""
        return self._version

    def revive(self) -> None:
        """The engine was built afresh: version 0, no probe yet."""
        super().revive()
        self._version, self._last = 0, None

    def sync(
        self,
        update: WeightUpdate,
        load: Callable[[], None],
        logprobs: Callable[[Sequence[int]], tuple[float, ...]],
        verify: Callable[[], None],
    ) -> dict[str, float]:
        """Runs ``load``, then ``verify`` (the engine's own checks), then the probe; any failure kills the engine.

        Returns ``sync/load_s``, ``sync/probe_s`` (seconds), and with a probe ``sync/probe_gap_max`` and
        ``sync/probe_gap_mean`` (nats).
        """
        self.require_alive()
        try:
            start = time.perf_counter()
            load()
            loaded = time.perf_counter()
            verify()
            metrics = self._probe(update, logprobs) if update.probe_ids else {}
            self._version = update.version
            probed = time.perf_counter()
        except BaseException as error:
            # Also after Ctrl-C: the weights may be half old and half new.
            self.kill(f"weight update {update.version} failed: {one_line(error)}")
            if not isinstance(error, Exception):
                raise
            raise WeightSyncError(
                f"weight update {update.version} failed: {one_line(error)}; the engine must be rebuilt"
            ) from error
        return {**metrics, "sync/load_s": loaded - start, "sync/probe_s": probed - loaded}

    def _probe(self, update: WeightUpdate, logprobs: Callable[[Sequence[int]], tuple[float, ...]]) -> dict[str, float]:
        if len(update.probe_logprobs) != len(update.probe_ids) - 1:
            raise ValueError(
                f"the probe has {len(update.probe_ids)} tokens and {len(update.probe_logprobs)} log-probabilities; "
                "one fewer than tokens is right"
            )
        engine = logprobs(update.probe_ids)
        gaps = [abs(ours - theirs) for ours, theirs in zip(engine, update.probe_logprobs, strict=True)]
        count = max(len(gaps), 1)
        mean = sum(gaps) / count
        # Rounding errors of bfloat16 grow with the logits, and move single unlikely tokens by half a nat: hence the
        # mean, in proportion. A NaN hides from '>': ask for what must hold instead.
        allowed = self._tolerance * (1 + sum(map(abs, update.probe_logprobs)) / count)
        if not mean <= allowed:
            raise ValueError(
                f"engine and learner disagree on the probe by {mean:.4g} nats a token, {allowed:.4g} allowed "
                "(raise probe_tolerance if their dtypes differ)"
            )
        self._require_movement(update, engine)
        self._last = (update, engine)
        return {"sync/probe_gap_max": max(gaps, default=0.0), "sync/probe_gap_mean": mean}

    def _require_movement(self, update: WeightUpdate, engine: tuple[float, ...]) -> None:
        if self._last is None or self._last[0].probe_ids != update.probe_ids:
            return
        before, engine_before = self._last
        moved = max(abs(a - b) for a, b in zip(update.probe_logprobs, before.probe_logprobs, strict=True))
        if moved > LEARNER_MOVED and engine == engine_before:
            raise ValueError(
                f"the learner's probe moved by {moved:.4g} nats since version {before.version}, the engine's not "
                "at all: it still holds the old weights"
            )


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def check_requests(lengths: Sequence[int], max_new_tokens: int, max_context: int) -> None:
    """``ValueError`` naming the first request whose prompt is empty or does not fit with its completion."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for index, length in enumerate(lengths):
        if length == 0:
            raise ValueError(f"request {index} has an empty prompt")
        if length + max_new_tokens > max_context:
            raise ValueError(
                f"request {index}: {length} prompt tokens and {max_new_tokens} new ones exceed the context of "
                f"{max_context}; raise max_context or shorten the prompt"
            )


def check_sequences(lengths: Sequence[int], max_context: int) -> None:
    """``ValueError`` naming the first sequence that is empty or longer than the context."""
    for index, length in enumerate(lengths):
        if not 1 <= length <= max_context:
            raise ValueError(f"sequence {index} has {length} tokens; 1 to {max_context} fit the context")


def check_tokens(sequences: Sequence[Sequence[int]], vocabulary: int) -> None:
    """``ValueError`` naming the first sequence (none is empty) with a token that the model does not have."""
    for index, sequence in enumerate(sequences):
        for token in (min(sequence), max(sequence)):
            if not 0 <= token < vocabulary:
                raise ValueError(f"sequence {index} has token {token}; the model knows 0 to {vocabulary - 1}")
