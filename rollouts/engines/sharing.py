"""Which of many token sequences begin alike, so that what they share is computed once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rollouts.engines.classifier import Logit

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Distinct:
    """The different sequences among ``N``: ``sequences`` in lexicographic order, those that begin alike side by side.

    ``slots[n]`` is the place of sequence n among them; ``first[d]`` the n that asked for sequence d first.
    """

    sequences: tuple[Tokens, ...]
    slots: tuple[int, ...]
    first: tuple[int, ...]

    def answers(self, values: Sequence[float], cached: Sequence[int]) -> list[Logit]:
        """One logit for each of the ``N``, of the ``values`` and ``cached`` tokens of the different ones.

        Nothing was computed for a copy: all its tokens count as cached.
        """
        return [
            Logit(values[slot], cached[slot] if self.first[slot] == index else len(self.sequences[slot]))
            for index, slot in enumerate(self.slots)
        ]


@dataclass(frozen=True, slots=True)
class Group:
    """``sequences[start:stop]`` share their first ``prefix`` tokens, and each has at least one more; 0 shares none."""

    start: int
    stop: int
    prefix: int


def distinct(sequences: Sequence[Sequence[int]]) -> Distinct:
    """The different ones among ``sequences``."""
    wanted = [tuple(sequence) for sequence in sequences]
    first: dict[Tokens, int] = {}
    for index, sequence in enumerate(wanted):
        first.setdefault(sequence, index)
    ordered = sorted(first)
    place = {sequence: slot for slot, sequence in enumerate(ordered)}
    return Distinct(tuple(ordered), tuple(place[s] for s in wanted), tuple(first[s] for s in ordered))


def share_prefixes(ordered: Sequence[Tokens], least: int) -> list[Group]:
    """Groups that cut ``ordered`` (lexicographic, all different, none empty) so that the fewest tokens are computed.

    A group shares at least ``least`` tokens; what gains nothing stands alone. Dynamic programming over the place of
    the last cut: a group of k with a prefix of p tokens saves (k - 1) p of them.
    """
    common = [_common(a, b) for a, b in itertools.pairwise(ordered)]
    saved = [0] * (len(ordered) + 1)
    cut: list[Group] = []
    for stop in range(1, len(ordered) + 1):
        best, group = saved[stop - 1], Group(stop - 1, stop, 0)
        prefix = len(ordered[stop - 1]) - 1
        for start in range(stop - 2, -1, -1):
            prefix = min(prefix, common[start], len(ordered[start]) - 1)
            if prefix < least:
                break
            if saved[start] + (stop - start - 1) * prefix > best:
                best, group = saved[start] + (stop - start - 1) * prefix, Group(start, stop, prefix)
        saved[stop] = best
        cut.append(group)
    groups: list[Group] = []
    stop = len(ordered)
    while stop:
        groups.append(cut[stop - 1])
        stop = groups[-1].start
    return groups[::-1]


def _common(a: Tokens, b: Tokens) -> int:
    """The length of the longest common prefix."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
