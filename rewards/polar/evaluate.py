"""Preference accuracy with a reference (arXiv 2507.05197, section 4.2): how often the better of two answers wins.

Of three ranked answers the best is the reference; a reward model is right when the second scores above the third. The
number means little alone: it is measured beside the same model without the right reference, rules that see only
lengths, the similarity of an embedding and, where given, the same backbone without pre-training, and "beats" is a
difference with an interval.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from rewards.normalise import is_number
from rewards.polar.bootstrap import BootstrapConfig, Estimate, cluster_mean
from rewards.polar.types import PolarError, PolarItem, Triple, Turns
from rewards.polar.variants import (
    LENGTH_RULES,
    ScoreFunction,
    prompt_key,
    with_shuffled_references,
    without_reference,
)

Variant = Literal["with reference", "no reference", "shuffled references", "baseline"]

REFERENCE_VARIANTS: tuple[Variant, ...] = ("with reference", "no reference", "shuffled references")

Pair = tuple[float, float] | None
"""The scores of chosen and rejected; None where one of them failed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the triples whose two items were scored: accuracy (a tie counts one half), mean margin (chosen minus rejected,
    units of the score), and the Bradley-Terry loss ``-log sigmoid(margin)`` in nats, None where scores are not logits.
    ``failed`` triples lack a score and are in none of these."""

    accuracy: Estimate
    margin: Estimate
    loss: Estimate | None
    prompts: int
    triples: int
    failed: int


@dataclass(frozen=True, slots=True)
class Result:
    """One scorer under one variant. ``overall`` is None where every triple failed; so is a category's entry."""

    name: str
    variant: Variant
    overall: Measured | None
    categories: Mapping[str, Measured | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of ``first`` minus that of ``second`` over the triples that both scored; None where there is none."""

    first: str
    second: str
    difference: Estimate | None
    prompts: int
    triples: int

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Of ``first``: whether the interval leaves out zero, and on which side."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return "undecided"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Report:
    """``best_length_rule`` is the best of the length rules on these very triples: a maximum, so biased upwards, and the
    bar that a model has to clear."""

    results: tuple[Result, ...]
    differences: tuple[Difference, ...]
    best_length_rule: str
    prompts: int
    triples: int


def evaluate(
    triples: Sequence[Triple],
    scorers: Mapping[str, ScoreFunction],
    *,
    similarity: Mapping[str, ScoreFunction] | None = None,
    variants: Sequence[Variant] = REFERENCE_VARIANTS,
    bootstrap: BootstrapConfig | None = None,
) -> Report:
    """Every scorer under every variant, the rules, and the paired differences.

    ``scorers`` give logits; the backbone without pre-training is one more of them. ``similarity`` holds scorers that
    need their reference and do not give logits, such as
    :meth:`rewards.similarity.SimilarityScorer.similarities`. Differences are those of each scorer with reference
    against itself under the other variants, against the best length rule, each similarity and each later scorer. Their
    intervals are not corrected for being several. ``bootstrap.seed`` shuffles the references too.

    Raises :class:`PolarError` when there is no triple, ``variants`` lack the reference, names are not unique, or a
    function loses items.
    """
    bootstrap = bootstrap or BootstrapConfig()
    _check(triples, scorers, similarity or {}, variants)
    inputs = {variant: _under(variant, triples, bootstrap.seed) for variant in variants}
    pairs: dict[tuple[str, Variant], list[Pair]] = {}
    for name, score in scorers.items():
        for variant in variants:
            pairs[name, variant] = score_triples(inputs[variant], score, name)
    for name, score in (*LENGTH_RULES.items(), *(similarity or {}).items()):
        pairs[name, "baseline"] = score_triples(triples, score, name)
    results = tuple(
        measure(triples, scored, name, variant, logits=variant != "baseline", bootstrap=bootstrap)
        for (name, variant), scored in pairs.items()
    )
    best = max(
        (r for r in results if r.name in LENGTH_RULES), key=lambda r: r.overall.accuracy.value if r.overall else 0
    )
    differences = tuple(
        paired_difference(triples, (_title(*a), pairs[a]), (_title(*b), pairs[b]), bootstrap)
        for a, b in _contests(list(scorers), variants, [best.name, *(similarity or {})])
    )
    return Report(results, differences, best.name, len(set(map(prompt_key, triples))), len(triples))


def preference_accuracy(
    triples: Sequence[Triple],
    score: ScoreFunction,
    *,
    name: str = "scorer",
    logits: bool = True,
    bootstrap: BootstrapConfig | None = None,
) -> Result:
    """One scorer on the triples as they are; without ``logits`` there is no loss."""
    scored = score_triples(triples, score, name)
    return measure(triples, scored, name, "with reference", logits=logits, bootstrap=bootstrap)


def score_triples(triples: Sequence[Triple], score: ScoreFunction, name: str = "scorer") -> list[Pair]:
    """The scores of each triple's two candidates, in order; an item that comes several times is scored once.

    Raises :class:`PolarError` when the function gives another number of scores than it got items.
    """
    items: dict[Hashable, PolarItem] = {}
    keys: list[tuple[Hashable, Hashable]] = []
    for triple in triples:
        two = []
        for output in (triple.chosen, triple.rejected):
            key = (_key(triple.prompt), _key(triple.reference), _key(output), triple.wrapper)
            items.setdefault(key, PolarItem(triple.prompt, triple.reference, output, triple.wrapper))
            two.append(key)
        keys.append((two[0], two[1]))
    scores = list(score(list(items.values()))) if items else []
    if len(scores) != len(items):
        raise PolarError(f"{name} gave {len(scores)} scores for {len(items)} items: one each is needed, in order")
    of = dict(zip(items, scores, strict=True))
    pairs: list[Pair] = []
    for chosen, rejected in ((of[a], of[b]) for a, b in keys):
        pairs.append((chosen, rejected) if is_number(chosen) and is_number(rejected) else None)
    return pairs


def measure(
    triples: Sequence[Triple],
    pairs: Sequence[Pair],
    name: str,
    variant: Variant,
    *,
    logits: bool = True,
    bootstrap: BootstrapConfig | None = None,
) -> Result:
    """What ``pairs``, the scores of ``triples``, amount to; categories are those of ``metadata["category"]``."""
    bootstrap = bootstrap or BootstrapConfig()
    places: dict[str, list[int]] = {}
    for place, triple in enumerate(triples):
        if "category" in triple.metadata:
            places.setdefault(triple.metadata["category"], []).append(place)

    def part(chosen: Sequence[int]) -> Measured | None:
        return _measured([triples[i] for i in chosen], [pairs[i] for i in chosen], logits, bootstrap)

    categories = {category: part(places[category]) for category in sorted(places)}
    return Result(name, variant, part(range(len(triples))), categories)


def paired_difference(
    triples: Sequence[Triple],
    first: tuple[str, Sequence[Pair]],
    second: tuple[str, Sequence[Pair]],
    bootstrap: BootstrapConfig | None = None,
) -> Difference:
    """Accuracy of ``first`` (name, scores) minus that of ``second``, with the interval of the paired bootstrap over
    prompts: prompts that are hard for both drop out."""
    rows = [
        (prompt_key(triple), _hit(a) - _hit(b))
        for triple, a, b in zip(triples, first[1], second[1], strict=True)
        if a is not None and b is not None
    ]
    clusters = [prompt for prompt, _ in rows]
    estimate = cluster_mean([gap for _, gap in rows], clusters, bootstrap, (-1.0, 1.0)) if rows else None
    return Difference(first[0], second[0], estimate, len(set(clusters)), len(rows))


def _measured(
    triples: Sequence[Triple], pairs: Sequence[Pair], logits: bool, bootstrap: BootstrapConfig
) -> Measured | None:
    scored = [(prompt_key(triple), pair) for triple, pair in zip(triples, pairs, strict=True) if pair is not None]
    if not scored:
        return None
    clusters = [prompt for prompt, _ in scored]
    margins = np.array([pair[0] - pair[1] for _, pair in scored])
    hits = [_hit(pair) for _, pair in scored]
    loss = np.logaddexp(0.0, -margins)
    return Measured(
        accuracy=cluster_mean(hits, clusters, bootstrap, (0.0, 1.0)),
        margin=cluster_mean(margins, clusters, bootstrap),
        loss=cluster_mean(loss, clusters, bootstrap, (0.0, math.inf)) if logits else None,
        prompts=len(set(clusters)),
        triples=len(scored),
        failed=len(pairs) - len(scored),
    )


def _hit(pair: tuple[float, float]) -> float:
    return 0.5 if pair[0] == pair[1] else float(pair[0] > pair[1])


def _key(turns: Turns) -> Hashable:
    return turns if isinstance(turns, str) else tuple(turns)


def _under(variant: Variant, triples: Sequence[Triple], seed: int) -> Sequence[Triple]:
    match variant:
        case "no reference":
            return without_reference(triples)
        case "shuffled references":
            return with_shuffled_references(triples, seed)
        case _:
            return triples


def _contests(
    names: Sequence[str], variants: Sequence[Variant], baselines: Sequence[str]
) -> list[tuple[tuple[str, Variant], tuple[str, Variant]]]:
    full: Variant = "with reference"
    rule: Variant = "baseline"
    found: list[tuple[tuple[str, Variant], tuple[str, Variant]]] = []
    for name in names:
        found += [((name, full), (name, variant)) for variant in variants if variant != full]
        found += [((name, full), (baseline, rule)) for baseline in baselines]
    return found + [((one, full), (other, full)) for one, other in combinations(names, 2)]


def _title(name: str, variant: Variant) -> str:
    return name if variant in ("with reference", "baseline") else f"{name}, {variant}"


def _check(
    triples: Sequence[Triple],
    scorers: Mapping[str, ScoreFunction],
    similarity: Mapping[str, ScoreFunction],
    variants: Sequence[Variant],
) -> None:
    if not triples:
        raise PolarError("there is no triple to evaluate on")
    unknown = [variant for variant in variants if variant not in REFERENCE_VARIANTS]
    if unknown or "with reference" not in variants:
        raise PolarError(f"variants must be of {', '.join(REFERENCE_VARIANTS)}, the first among them")
    names = [*scorers, *similarity, *LENGTH_RULES]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PolarError(f"two scorers are called '{twice[0]}': give them names of their own")
