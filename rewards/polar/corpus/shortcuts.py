"""How far one gets without a discriminator: rules on length, and the similarity of embeddings."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.intervals import wilson
from rewards.polar.types import PolarError

if TYPE_CHECKING:
    import numpy as np

Embedder = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]
"""Texts to rows [N, D] of norm 1."""

Lengths = tuple[int, int, int]
"""Of reference, chosen and rejected, in tokens."""


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
    right = math.fsum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in values)
    return Accuracy(right / len(values), *wilson(right, len(values)), len(values))


def length_rules(lengths: Sequence[Lengths]) -> dict[str, Accuracy]:
    """Accuracy of the rules ``longer``, ``shorter`` and ``closest`` (in length to the reference); empty of nothing."""
    rules: Mapping[str, Callable[[int, int, int], int]] = {
        "longer": lambda reference, chosen, rejected: chosen - rejected,
        "shorter": lambda reference, chosen, rejected: rejected - chosen,
        "closest": lambda reference, chosen, rejected: abs(rejected - reference) - abs(chosen - reference),
    }
    found = {name: accuracy(rule(*triple) for triple in lengths) for name, rule in rules.items()}
    return {name: value for name, value in found.items() if value is not None}


def fitted_length_rule(train: Sequence[Lengths], test: Sequence[Lengths]) -> Accuracy | None:
    """Accuracy on ``test`` of the best rule on the three lengths that a logistic regression finds on ``train``.

    A rule of signs can be at chance where one of amounts is not: "much closer wins, a little closer loses". The
    features are powers of logarithmic lengths and of their distances from the reference's, of chosen minus those of
    rejected. None where either is empty.
    """
    if not train or not test:
        return None
    fitted, held = _length_features(train), _length_features(test)
    scale = fitted.std(axis=0) + 1e-9
    weights = _logistic(fitted / scale)
    return accuracy(float(margin) for margin in (held / scale) @ weights)


def policy_rule(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> Accuracy | None:
    """Accuracy on ``test`` of knowing each text's policy and preferring the one that more often gave the chosen text
    in ``train``: all that can be told from a candidate alone. Pairs are (policy A, policy B)."""
    wins, losses = Counter(a for a, _ in train), Counter(b for _, b in train)
    share = {name: wins[name] / (wins[name] + losses[name]) for name in {*wins, *losses}}
    return accuracy(share.get(a, 0.5) - share.get(b, 0.5) for a, b in test)


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


def _length_features(lengths: Sequence[Lengths]) -> "np.ndarray[Any, Any]":
    """Antisymmetric in chosen and rejected [N, F]: a rule without an intercept cannot prefer by position."""
    import numpy as np

    reference, chosen, rejected = np.log(np.maximum(np.array(lengths, dtype=np.float64), 1)).T

    def of(side: "np.ndarray[Any, Any]") -> list["np.ndarray[Any, Any]"]:
        away = side - reference
        return [side, side**2, side * reference, np.sign(away), abs(away), away**2, away**3, abs(away) * reference]

    signs = [np.sign(chosen - rejected), np.sign(abs(chosen - reference) - abs(rejected - reference))]
    return np.column_stack([*(ours - theirs for ours, theirs in zip(of(chosen), of(rejected), strict=True)), *signs])


def _logistic(features: "np.ndarray[Any, Any]", ridge: float = 1.0, steps: int = 50) -> "np.ndarray[Any, Any]":
    """Weights [F] that maximise the likelihood of every row being preferred to its opposite, by Newton's method."""
    import numpy as np

    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        wrong = 1 / (1 + np.exp(np.clip(features @ weights, -30, 30)))
        curvature = (features.T * (wrong * (1 - wrong))) @ features + ridge * np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, features.T @ wrong - ridge * weights)
    return weights
