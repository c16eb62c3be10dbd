"""Which sequences share a prefix: by hand, and against all ways of cutting the list."""

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from rollouts.engines.classifier import Logit
from rollouts.engines.sharing import Group, distinct, share_prefixes

SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), max_size=7, unique=True)


def test_copies_are_found_and_what_begins_alike_stands_together() -> None:
    found = distinct([(5, 6), (1,), [5, 6], (5, 4, 9), (1,)])
    assert found.sequences == ((1,), (5, 4, 9), (5, 6))
    assert found.slots == (2, 0, 2, 1, 0)
    assert found.first == (1, 3, 0)


def test_nothing_is_computed_for_a_copy() -> None:
    found = distinct([(5, 6, 7), (1, 2), (5, 6, 7)])
    assert found.answers([0.5, -2.0], [0, 1]) == [Logit(-2.0, 1), Logit(0.5, 0), Logit(-2.0, 3)]


def test_candidates_of_two_prompts_make_two_groups() -> None:
    first = [(1, 2, 3, end) for end in (4, 5, 6)]
    second = [(1, 7, 8, 9, end) for end in (4, 5)]
    assert share_prefixes([*first, *second], 2) == [Group(0, 3, 3), Group(3, 5, 4)]
    # One token is common to all five: four times one is less than twice three and once four.
    assert share_prefixes([*first, *second], 1) == [Group(0, 3, 3), Group(3, 5, 4)]


def test_one_that_begins_another_keeps_a_token_of_its_own() -> None:
    assert share_prefixes([(1, 2, 3), (1, 2, 3, 4)], 1) == [Group(0, 2, 2)]


def test_short_prefixes_and_loners_share_nothing() -> None:
    assert share_prefixes([(1, 2, 3), (1, 2, 4)], 3) == [Group(0, 1, 0), Group(1, 2, 0)]
    assert share_prefixes([(1, 2, 3)], 1) == [Group(0, 1, 0)]
    assert share_prefixes([], 1) == []


@given(SEQUENCES, st.integers(1, 3))
def test_no_other_cut_saves_more(sequences: list[tuple[int, ...]], least: int) -> None:
    ordered = sorted(sequences)
    groups = share_prefixes(ordered, least)
    assert [slot for group in groups for slot in range(group.start, group.stop)] == list(range(len(ordered)))
    for group in groups:
        members = ordered[group.start : group.stop]
        assert len({member[: group.prefix] for member in members}) == 1
        assert all(len(member) > group.prefix for member in members)
        assert group.prefix >= least or (group.prefix == 0 and len(members) == 1)
    saved = sum((group.stop - group.start - 1) * group.prefix for group in groups)
    assert saved == max(_saved(parts, least) for parts in _cuts(ordered))


def _cuts(ordered: Sequence[tuple[int, ...]]) -> Iterator[list[Sequence[tuple[int, ...]]]]:
    for inner in itertools.product((False, True), repeat=max(len(ordered) - 1, 0)):
        ends = [0, *(index + 1 for index, cut in enumerate(inner) if cut), len(ordered)]
        yield [ordered[start:stop] for start, stop in itertools.pairwise(ends)]


def _saved(parts: Sequence[Sequence[tuple[int, ...]]], least: int) -> int:
    total = 0
    for part in parts:
        prefix = 0
        while part and all(len(s) > prefix + 1 and s[prefix] == part[0][prefix] for s in part):
            prefix += 1
        total += (len(part) - 1) * prefix if prefix >= least else 0
    return total
