"""Which samples become a triple, so that length does not tell the winner.

Two samples of one policy are alike in length as well as in manner. A discriminator could win by length alone: the
longer one, the shorter one, or the one closer in length to the reference. Chosen and rejected are therefore matched in
length, and what remains is balanced over the corpus.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

Cell = tuple[int, ...]

_BIN = 0.05  # of the logarithm of a length's ratio to the reference's; bins twice as wide let a fitted rule through
_BINS = 20  # to each side; what lies beyond is in the last one


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
    """Chooses a triple of each prompt so that, over every group, length does not tell chosen from rejected.

    Options whose lengths differ by more than ``tolerance`` (a share) are never taken. The others are put into cells:
    where chosen and rejected stand relative to the reference, which of them is longer and which is closer to it, and
    how long the reference is. Exchanging chosen and rejected leads to the opposite cell. A rule that reads nothing but
    lengths is at chance if every cell is as full as its opposite, so a prompt takes, in a seeded order of prompts, the
    option whose cell exceeds its opposite least, then (few prompts fill few cells) the one whose signs alone do, then
    the one of smallest difference. What at the end exceeds its opposite by more than one, in a cell or in signs, is
    dropped, the worst matched first.

    Ledger: ``triples``, ``too_few`` (distinct texts), ``length_gap`` (no option within tolerance), ``unbalanced``
    (dropped for balance).
    """
    order = sorted(candidates, key=lambda entry: entry.key)
    random.Random(f"{seed}:match").shuffle(order)
    ledger = Counter(triples=0, too_few=0, length_gap=0, unbalanced=0)
    unmatched: dict[str, Option] = {}
    taken: dict[str, dict[str, Option]] = {}
    full: dict[str, Counter[Cell]] = {}
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
        counts = full.setdefault(entry.group, Counter())
        best = min(close, key=partial(_preference, counts))
        counts.update((cell(best), signs(best)))
        taken.setdefault(entry.group, {})[entry.key] = best
    chosen: dict[str, Option] = {}
    for group in taken.values():
        kept = _balanced(_balanced(group, cell), signs)
        ledger["unbalanced"] += len(group) - len(kept)
        chosen |= kept
    ledger["triples"] = len(chosen)
    return Matched(chosen, unmatched, dict(ledger))


def signs(option: Option) -> Cell:
    """Whether chosen is the longer one, and whether it is farther from the reference's length: -1, 0 or 1 each."""
    return _sign(option.longer), _sign(option.farther)


def cell(option: Option) -> Cell:
    """:func:`signs`, bins of the lengths of chosen and of rejected relative to the reference, and the reference's
    length as a power of two."""
    reference, chosen, rejected = (max(length, 1) for length in option.lengths)
    bins = (math.floor(math.log(length / reference) / _BIN) for length in (chosen, rejected))
    return *signs(option), *(max(-_BINS, min(_BINS, bin)) for bin in bins), reference.bit_length()


def opposite(of: Cell) -> Cell:
    """The cell of the same option with chosen and rejected exchanged."""
    longer, farther, *rest = of
    return (-longer, -farther, rest[1], rest[0], *rest[2:]) if rest else (-longer, -farther)


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


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _excess(counts: Mapping[Cell, int], of: Cell) -> int:
    """By how much the cell exceeds its opposite; 0 for a tie, which is its own opposite."""
    return counts.get(of, 0) - counts.get(opposite(of), 0)


def _preference(counts: Mapping[Cell, int], option: Option) -> tuple[int, int, float]:
    return _excess(counts, cell(option)), _excess(counts, signs(option)), option.gap


def _balanced(group: Mapping[str, Option], cell_of: Callable[[Option], Cell]) -> dict[str, Option]:
    """``group`` without what exceeds its opposite by more than one."""
    cells: dict[Cell, list[str]] = {}
    for key, option in group.items():
        cells.setdefault(cell_of(option), []).append(key)
    counts = {of: len(keys) for of, keys in cells.items()}
    kept = dict(group)
    for of, keys in cells.items():
        excess = max(_excess(counts, of) - 1, 0)
        for key in sorted(keys, key=lambda key: (-group[key].gap, key))[:excess]:
            del kept[key]
    return kept
