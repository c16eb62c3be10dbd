"""Which samples become a triple, so that length does not tell the winner.

Two samples of one policy are alike in length as well as in manner. A discriminator could win by length alone: the
longer one, the shorter one, or the one closer in length to the reference. Chosen and rejected are therefore matched in
length, and what remains is balanced over the corpus.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

Sign = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Option:
    """A choice of samples: indices of policy A's (``reference``, ``chosen``) and of policy B's (``rejected``), and
    the three lengths in tokens."""

    reference: int
    chosen: int
    rejected: int
    lengths: tuple[int, int, int]

    @property
    def longer(self) -> int:
        """Length of chosen minus that of rejected."""
        return self.lengths[1] - self.lengths[2]

    @property
    def farther(self) -> int:
        """How much farther in length from the reference chosen is than rejected; below 0 it is closer."""
        reference, chosen, rejected = self.lengths
        return abs(chosen - reference) - abs(rejected - reference)

    @property
    def gap(self) -> float:
        """Difference in length of chosen and rejected, as a share of the longer one."""
        return abs(self.longer) / max(self.lengths[1], self.lengths[2], 1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is left of a prompt's samples: index and length in tokens of each distinct text of A, and of each of B that
    A did not give as well. ``group`` is balanced by itself (its split and mode)."""

    key: str
    group: str
    positives: tuple[tuple[int, int], ...]
    negatives: tuple[tuple[int, int], ...]

    def options(self) -> Iterator[Option]:
        """Every way to make a triple."""
        for reference, reference_length in self.positives:
            for chosen, chosen_length in self.positives:
                if chosen != reference:
                    for rejected, rejected_length in self.negatives:
                        lengths = (reference_length, chosen_length, rejected_length)
                        yield Option(reference, chosen, rejected, lengths)


@dataclass(frozen=True, slots=True)
class Matched:
    """``chosen`` maps keys of candidates to what was taken; ``unmatched`` holds the first option of every prompt that
    had one, as it would be without matching. ``ledger`` counts prompts by what became of them."""

    chosen: dict[str, Option]
    unmatched: dict[str, Option]
    ledger: dict[str, int]


def match_lengths(candidates: Sequence[Candidates], tolerance: float, seed: int) -> Matched:
    """Chooses a triple of each prompt so that over every group no rule on signs of length differences wins.

    Options whose lengths differ by more than ``tolerance`` (a share) are never taken. Of the others a prompt takes, in
    a seeded order of prompts, the one that brings its group closest to balance, the smallest difference first among
    equals. A group is in balance when for every combination of "chosen is longer, shorter" and "chosen is closer to the
    reference's length, farther" there are as many triples as of the opposite one: then both rules, and each
    combination of them, win half of the time. What still exceeds its opposite by more than one is dropped, the worst
    matched first.

    Ledger: ``triples``, ``too_few`` (distinct texts), ``length_gap`` (no option within tolerance),
    ``unbalanced`` (dropped for balance).
    """
    order = sorted(candidates, key=lambda entry: entry.key)
    random.Random(f"{seed}:match").shuffle(order)
    ledger = Counter(triples=0, too_few=0, length_gap=0, unbalanced=0)
    unmatched: dict[str, Option] = {}
    taken: dict[str, dict[str, Option]] = {}
    counts: dict[str, Counter[Sign]] = {}
    for entry in order:
        options = list(entry.options())
        if not options:
            ledger["too_few"] += 1
            continue
        unmatched[entry.key] = options[0]
        close = [option for option in options if option.gap <= tolerance]
        if not close:
            ledger["length_gap"] += 1
            continue
        signs = counts.setdefault(entry.group, Counter())
        best = min(close, key=partial(_preference, signs))
        signs[_signs(best)] += 1
        taken.setdefault(entry.group, {})[entry.key] = best
    chosen: dict[str, Option] = {}
    for group in taken.values():
        kept = _balanced(group)
        ledger["unbalanced"] += len(group) - len(kept)
        chosen |= kept
    ledger["triples"] = len(chosen)
    return Matched(chosen, unmatched, dict(ledger))


def distinct(positives: Sequence[str | None], negatives: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """Indices of the first of each text, of A and of B, and no text of B that A gave too. None is a dropped sample."""
    ours = _first_of_each(positives)
    said = {positives[index] for index in ours}
    return ours, [index for index in _first_of_each(negatives) if negatives[index] not in said]


def _first_of_each(texts: Sequence[str | None]) -> list[int]:
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        if text is not None:
            first.setdefault(text, index)
    return list(first.values())


def _signs(option: Option) -> Sign:
    return _sign(option.longer), _sign(option.farther)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _opposite(signs: Sign) -> Sign:
    return -signs[0], -signs[1]


def _preference(counts: Mapping[Sign, int], option: Option) -> tuple[int, float]:
    """By how much the option's signs would exceed their opposite (0 for a tie, its own opposite), then its gap."""
    signs = _signs(option)
    excess = 0 if signs == (0, 0) else counts.get(signs, 0) + 1 - counts.get(_opposite(signs), 0)
    return excess, option.gap


def _balanced(group: Mapping[str, Option]) -> dict[str, Option]:
    """``group`` without what exceeds its opposite by more than one."""
    classes: dict[Sign, list[str]] = {}
    for key, option in group.items():
        classes.setdefault(_signs(option), []).append(key)
    kept = dict(group)
    for signs, keys in classes.items():
        if signs == (0, 0):
            continue
        excess = len(keys) - len(classes.get(_opposite(signs), [])) - 1
        for key in sorted(keys, key=lambda key: (-group[key].gap, key))[: max(excess, 0)]:
            del kept[key]
    return kept
