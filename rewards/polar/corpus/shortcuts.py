"""How far one gets without a discriminator: rules on length, and the similarity of embeddings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.polar.types import PolarError

if TYPE_CHECKING:
    import numpy as np

Embedder = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]
"""Texts to rows [N, D] of norm 1."""

Lengths = tuple[int, int, int]
"""Of reference, chosen and rejected, in tokens."""

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of ``count`` triples that a rule gets right, a tie counting half, and its 95% interval (Wilson's)."""

    value: float
    low: float
    high: float
    count: int

    @property
    def at_chance(self) -> bool:
        """Whether the interval holds one half."""
        return self.low <= 0.5 <= self.high


def accuracy(margins: Iterable[float]) -> Accuracy | None:
    """Of a rule that prefers chosen by these margins; None of no triples."""
    values = list(margins)
    if not values:
        return None
    n = len(values)
    share, z2 = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in values) / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Accuracy(share, max(0.0, centre - half), min(1.0, centre + half), n)


def length_rules(lengths: Sequence[Lengths]) -> dict[str, Accuracy]:
    """Accuracy of the rules ``longer``, ``shorter`` and ``closest`` (in length to the reference); empty of nothing."""
    rules: Mapping[str, Callable[[int, int, int], int]] = {
        "longer": lambda reference, chosen, rejected: chosen - rejected,
        "shorter": lambda reference, chosen, rejected: rejected - chosen,
        "closest": lambda reference, chosen, rejected: abs(rejected - reference) - abs(chosen - reference),
    }
    found = {name: accuracy(rule(*triple) for triple in lengths) for name, rule in rules.items()}
    return {name: value for name, value in found.items() if value is not None}


def embedding_rule(
    references: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], embed: Embedder
) -> Accuracy | None:
    """Accuracy of preferring the text that is more similar to the reference: what content alone tells.

    Raises :class:`PolarError` when ``embed`` does not give one finite row a text.
    """
    if not references:
        return None
    rows = [_rows(texts, embed) for texts in (references, chosen, rejected)]
    margins = (rows[0] * (rows[1] - rows[2])).sum(axis=1)
    return accuracy(float(margin) for margin in margins)


def _rows(texts: Sequence[str], embed: Embedder) -> "np.ndarray[Any, Any]":
    import numpy as np

    rows = np.asarray(embed(texts), dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
        raise PolarError(f"the embedder gave an array of shape {rows.shape} for {len(texts)} texts, or not all finite")
    return rows
