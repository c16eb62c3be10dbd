"""Scores that the authors published, as a test of a converted model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rewards.polar.types import PolarItem
from rollouts.types import Message

TOLERANCE: Final = 0.05  # float16 rounding of weights and activations included


@dataclass(frozen=True, slots=True)
class GoldenPair:
    """An item, and the score its authors published for it."""

    item: PolarItem
    expected: float


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """What a model scored, beside what was published."""

    item: PolarItem
    expected: float
    score: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by at most :data:`TOLERANCE`; never for a score that is no number."""
        return abs(self.score - self.expected) <= TOLERANCE


def _pair(output: str, expected: float) -> GoldenPair:
    question = [Message("user", "What is the capital of China?")]
    return GoldenPair(PolarItem(question, [Message("assistant", "Beijing.")], [Message("assistant", output)]), expected)


POLAR_7B: Final = (_pair("Beijing.", -0.5702977776527405), _pair("Shanghai.", -11.030370712280273))
"""The example of the README of InternLM/POLAR, scored with transformers by POLAR-7B (not its base, nor the 1.8B)."""


def golden(
    folder: Path, pairs: Sequence[GoldenPair] = POLAR_7B, dtype: str = "auto", device: str = "cpu"
) -> list[GoldenResult]:
    """Scores ``pairs`` with the model of ``folder`` through our encoder and transformers, one after the other.

    ``dtype`` is a torch type's name; ``auto`` takes the folder's own. The default pairs hold for POLAR-7B alone.
    Raises :class:`rewards.polar.types.PolarError` when ``folder`` is no POLAR model folder.
    """
    import torch
    from transformers import AutoConfig

    from rewards.polar.model import load_encoder, load_polar

    encoder = load_encoder(folder)
    own = getattr(AutoConfig.from_pretrained(str(folder)), "dtype", None) or torch.float32
    model: Any = load_polar(folder, own if dtype == "auto" else getattr(torch, dtype))
    model.to(device)
    results = []
    for pair in pairs:
        item = pair.item
        ids = torch.tensor([encoder.encode(item.prompt, item.reference, item.output, item.wrapper)], device=device)
        with torch.no_grad():
            score = float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])
        results.append(GoldenResult(item, pair.expected, score))
    return results
