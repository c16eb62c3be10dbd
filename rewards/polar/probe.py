"""Whether an engine gives raw logits: a pair is scored by it and by transformers alone, and the two are compared.

Servers squash or average silently. vLLM applies a sigmoid to the logit of a single label unless a request says
``use_activation=false``, and the switch has had three names; its token-wise pooling gives a number for every token.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rewards.polar.types import PolarError, PolarItem
from rollouts.memory import return_freed_memory

_QUESTION: Final = "What is the capital of France?"
_ANSWER: Final = "The capital of France is Paris. It lies on the river Seine."

IDENTICAL: Final = PolarItem(_QUESTION, _ANSWER, _ANSWER)
DIFFERENT: Final = PolarItem(_QUESTION, _ANSWER, "bananas bananas 7 7 7, I have no idea; ask somebody else")

TOLERANCE: Final = {"float32": 2e-3}
"""The gap allowed between engine and transformers in float32, as a share of 1 + :attr:`Reading.size`."""

REDUCED_TOLERANCE: Final = 0.05
"""The same for every other dtype: bfloat16 keeps eight bits of each hidden value."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What transformers computes in float32 for one sequence: the logit at its ``last`` token, the ``mean`` of the
    logits at all tokens, and the ``size`` of the terms that the logit is the sum of (root of their squares' sum)."""

    last: float
    mean: float
    size: float


@dataclass(frozen=True, slots=True)
class Probe:
    """The raw logits of :data:`IDENTICAL` and :data:`DIFFERENT` as the engine gave them, and the larger ``gap`` to
    transformers. A model that has learnt something scores ``identical`` above ``different``."""

    identical: float
    different: float
    gap: float


def plain_readings(folder: Path, sequences: Sequence[Sequence[int]]) -> list[Reading]:
    """Readings of each sequence by itself, without padding or mask; the model is loaded for this and freed."""
    import torch

    from rollouts.models import load_classifier

    model: Any = load_classifier(folder, torch.float32)
    head = model.score.weight[0]
    readings = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([list(sequence)])
            terms = getattr(model, model.base_model_prefix)(ids, use_cache=False).last_hidden_state[0] * head
            logits = terms.sum(-1)
            readings.append(Reading(float(logits[-1]), float(logits.mean()), float(terms[-1].norm())))
    del model, head, terms
    gc.collect()
    return_freed_memory()
    return readings


def check_raw(values: Sequence[float], readings: Sequence[Reading], tolerance: float) -> float:
    """The largest gap between ``values`` and the readings' last logits.

    Raises :class:`PolarError` when it is more than ``tolerance`` times 1 + size, or when the values are nearer to
    something else than a raw logit; the message says to what.
    """

    def gap(expected: Callable[[Reading], float]) -> float:
        gaps = [abs(value - expected(reading)) for value, reading in zip(values, readings, strict=True)]
        return math.inf if any(math.isnan(g) for g in gaps) else max(gaps)

    raw, squashed, averaged = gap(lambda r: r.last), gap(lambda r: _sigmoid(r.last)), gap(lambda r: r.mean)
    allowed = tolerance * (1 + max(reading.size for reading in readings))
    nearest = min(raw, squashed, averaged)
    shown = ", ".join(f"{value:.4g}" for value in values)
    expected = ", ".join(f"{reading.last:.4g}" for reading in readings)
    if nearest > allowed:
        raise PolarError(
            f"the classifier gives {shown} where transformers computes {expected} ({allowed:.2g} apart at most): its "
            "weights, its tokens or its pooling are not those of this folder"
        )
    if nearest == raw:
        return raw
    if nearest == squashed:
        raise PolarError(
            f"the classifier returns sigmoid(logit): {shown} for logits of {expected}; ask it for raw logits "
            "(use_activation=false)"
        )
    raise PolarError(
        f"the classifier averages the scores of all tokens: {shown} for last logits of {expected}; read the head "
        "at the last token (LAST pooling)"
    )


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))
