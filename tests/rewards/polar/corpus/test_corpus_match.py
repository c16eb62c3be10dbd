"""Matching: length says nothing about who wins, whatever the policies' lengths are."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.polar.corpus.match import Candidates, Option, cell, distinct, match_lengths, opposite, signs
from rewards.polar.corpus.shortcuts import fitted_length_rule, length_rules


def candidates(key: str, positives: list[int], negatives: list[int], group: str = "train/base") -> Candidates:
    return Candidates(key, group, tuple(enumerate(positives)), tuple(enumerate(negatives)))


def test_the_differences_of_an_option() -> None:
    # Chosen is 30 longer than rejected, 20 from the reference against 10: 10 farther, and 30 of 120 apart.
    option = Option(0, 1, 0, (100, 120, 90))
    assert (option.longer, option.farther, option.gap) == (30, 10, 0.25)
    assert Option(0, 1, 0, (0, 0, 0)).gap == 0.0


def test_the_closest_lengths_are_matched() -> None:
    # Of 3 * 2 * 2 options the smallest difference is 101 against 100.
    matched = match_lengths([candidates("p", [80, 101, 150], [60, 100])], tolerance=0.2, seed=0)
    option = matched.chosen["p"]
    assert (option.chosen, option.rejected) == (1, 1)
    assert matched.ledger == {"triples": 1, "too_few": 0, "length_gap": 0, "unbalanced": 0}


def test_lengths_too_far_apart_are_left_out() -> None:
    assert match_lengths([candidates("p", [100, 100], [79])], 0.2, 0).ledger["length_gap"] == 1
    assert match_lengths([candidates("p", [100, 100], [80])], 0.2, 0).ledger["triples"] == 1


def test_prompts_without_three_texts_are_left_out() -> None:
    entries = [candidates("one positive", [5], [5]), candidates("no negative", [5, 6], [])]
    matched = match_lengths(entries, 0.2, 0)
    assert matched.ledger["too_few"] == 2
    assert not matched.unmatched


def test_what_cannot_be_balanced_is_dropped_worst_first() -> None:
    # Every chosen is longer than its rejected, and closer to the reference: only one may stay, the best matched.
    entries = [candidates(f"p{i}", [100, 100], [99 - i]) for i in range(5)]
    matched = match_lengths(entries, 0.2, 0)
    assert list(matched.chosen) == ["p0"]
    assert matched.ledger["unbalanced"] == 4
    assert len(matched.unmatched) == 5


@pytest.mark.parametrize(("farther", "closer", "kept"), [(5, 5, 10), (6, 3, 7), (0, 4, 1)])
def test_as_many_triples_as_of_the_opposite_remain(farther: int, closer: int, kept: int) -> None:
    # Reference 100: chosen 120 against rejected 110, and the other way round. A tolerance of 0.09 (10 of 120 is 0.083)
    # leaves each prompt this one option: 10 of 110 and 20 of 120 are too far apart.
    entries = [candidates(f"f{i}", [100, 120], [110]) for i in range(farther)]
    entries += [candidates(f"c{i}", [100, 110], [120]) for i in range(closer)]
    matched = match_lengths(entries, 0.09, 0)
    assert {option.reference for option in matched.chosen.values()} == {0}
    assert (matched.ledger["triples"], matched.ledger["unbalanced"]) == (kept, farther + closer - kept)


def test_a_prompt_gives_what_its_group_lacks() -> None:
    # Each prompt could give either option of the test above, and the first one's is answered by the second one's.
    entries = [candidates(f"p{i}", [100, 120, 110], [111, 121]) for i in range(2)]
    first, second = match_lengths(entries, 0.2, 0).chosen.values()
    assert opposite(signs(first)) == signs(second)


def test_groups_are_balanced_by_themselves() -> None:
    longer = [candidates(f"l{i}", [100, 100], [90], "train/base") for i in range(10)]
    shorter = [candidates(f"s{i}", [100, 100], [110], "train/chat") for i in range(10)]
    assert match_lengths([*longer, *shorter], 0.2, 0).ledger["triples"] == 2


def test_first_of_each_text_and_none_that_both_gave() -> None:
    assert distinct(["a", None, "a", "b"], ["b", "c", None, "c"]) == ([0, 3], [1])


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(1, 400), st.floats(0.2, 5.0), st.floats(0.05, 1.5), st.integers(2, 4),
    st.integers(1, 4),
)  # fmt: skip
def test_length_rules_are_at_chance_on_skewed_lengths(
    seed: int, count: int, ratio: float, spread: float, positives: int, negatives: int
) -> None:
    """Policy A is ``ratio`` times as long as B: without matching, one of the rules wins nearly always."""
    rng = random.Random(seed)

    def lengths(n: int, scale: float) -> list[int]:
        return [max(1, round(rng.lognormvariate(4.0, spread) * scale)) for _ in range(n)]

    entries = [candidates(f"p{i}", lengths(positives, ratio), lengths(negatives, 1.0)) for i in range(count)]
    matched = match_lengths(entries, 0.25, seed)
    assert sum(matched.ledger.values()) == count
    for name, found in length_rules([option.lengths for option in matched.chosen.values()]).items():
        assert found.at_chance, (name, found)
    for option in matched.chosen.values():
        assert option.gap <= 0.25
        assert option.reference != option.chosen


def test_matching_repairs_what_it_is_for() -> None:
    rng = random.Random(0)
    entries = []
    for i in range(600):
        a, b = rng.sample([40, 60, 90, 140], 2)
        entries.append(
            candidates(f"p{i}", *([round(rng.gauss(m, m / 4)) for _ in range(n)] for m, n in ((a, 3), (b, 4))))
        )
    matched = match_lengths(entries, 0.2, 0)
    before = length_rules([option.lengths for option in matched.unmatched.values()])
    after = length_rules([option.lengths for option in matched.chosen.values()])
    assert before["closest"].low > 0.6
    assert all(found.at_chance for found in after.values())
    assert after["closest"].value == pytest.approx(0.5, abs=0.02)
    assert matched.ledger["triples"] > 200


def test_no_rule_on_amounts_can_be_fitted() -> None:
    """Balanced signs alone leave 0.60 here: "much closer" and "a little farther" would still tell."""
    rng = random.Random(0)
    entries = []
    for i in range(4000):
        a, b = rng.sample([40, 60, 90, 140], 2)
        positives, negatives = ([round(rng.gauss(m, m / 4)) for _ in range(n)] for m, n in ((a, 3), (b, 4)))
        entries.append(candidates(f"p{i}", positives, negatives))
    matched = match_lengths(entries, 0.2, 0)

    def fitted(options: dict[str, Option]) -> float:
        lengths = [options[key].lengths for key in sorted(options)]
        random.Random(1).shuffle(lengths)
        half = len(lengths) // 2
        found = fitted_length_rule(lengths[:half], lengths[half:])
        assert found is not None
        return found.value

    assert fitted(matched.unmatched) > 0.75
    assert fitted(matched.chosen) < 0.55
    assert len(matched.chosen) > 1900


@given(st.tuples(*[st.integers(0, 5000)] * 3))
def test_exchanging_chosen_and_rejected_leads_to_the_opposite_cell(lengths: tuple[int, int, int]) -> None:
    reference, chosen, rejected = lengths
    option, exchanged = Option(0, 1, 0, lengths), Option(0, 1, 0, (reference, rejected, chosen))
    for of in (cell, signs):
        assert of(exchanged) == opposite(of(option))
        assert opposite(opposite(of(option))) == of(option)
    assert (cell(option) == opposite(cell(option))) == (chosen == rejected)


@settings(max_examples=20)
@given(st.permutations([candidates(f"p{i}", [90 + i, 100, 110 - i], [95, 105 + i]) for i in range(12)]))
def test_the_order_of_prompts_changes_nothing(entries: list[Candidates]) -> None:
    assert match_lengths(entries, 0.2, 3) == match_lengths(sorted(entries, key=lambda e: e.key), 0.2, 3)
