"""The Classifier Protocol: token sequences in, one raw number each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Logit:
    """The raw output of a scalar head at the last token: unbounded, neither a sigmoid nor a softmax.

    ``cached_tokens`` of the sequence were not computed for it: they were shared with another sequence of the call, or
    stood in the prefix cache.
    """

    value: float
    cached_tokens: int = 0


@runtime_checkable
class Classifier(Protocol):
    """A causal backbone with a scalar head (``*ForSequenceClassification``, one label), read at the last token.

    Implementations: :class:`rollouts.engines.hf_classifier.HFClassifier`,
    :class:`rollouts.engines.vllm_classifier.VLLMClassifier`. ``tests/contracts/test_classifier.py`` is the definition
    of what each method must do.
    """

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Logit]:
        """One logit for each sequence, in order. How sequences are batched or share prefixes never shows in the values
        beyond rounding.

        Raises ``ValueError`` naming the sequence that is empty or longer than :meth:`max_context`, and
        :class:`rollouts.engines.base.EngineError` when the engine fails (it must then be rebuilt).
        """
        ...

    def max_context(self) -> int:
        """The longest sequence, in tokens."""
        ...

    def rebuild(self) -> None:
        """Start afresh from the model's own weights."""
        ...

    def close(self) -> None:
        """Free memory and processes; the classifier cannot be used afterwards."""
        ...
