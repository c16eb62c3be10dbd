"""Cleaning: loops are shortened and never dropped, and every kept end is a complete one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.corpus.clean import Cleaned, clean, last_complete_end, shorten_loop
from rewards.polar.corpus.config import LoopConfig
from rewards.polar.types import PolarError
from rollouts.types import Finish

LOOPS = LoopConfig()
SMALL = LoopConfig(max_period=20, min_repeats=4, min_chars=8, keep=2)


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        # "ab " four times and a cut fifth: two remain. The blank at the end goes.
        ("Well. ab ab ab ab a", "Well. ab ab"),
        ("Well. ab ab ab", "Well. ab ab ab"),  # three repetitions are no loop
        ("no way!!!!!!!!", "no way!!"),  # eight characters of period 1
        ("no way!!!!!!!", "no way!!!!!!!"),  # seven are too few characters
        # The unit is "I am.\n", whose line break goes from the end.
        ("I am.\nI am.\nI am.\nI am.\n", "I am.\nI am."),
        # The loop begins inside a word: "xab" goes on as "ab".
        ("xabababab", "xabab"),
        ("Nothing repeats here.", "Nothing repeats here."),
        ("", ""),
    ],
)
def test_a_loop_keeps_a_fixed_number_of_repetitions(text: str, shorter: str) -> None:
    assert shorten_loop(text, SMALL) == shorter


def test_the_shortest_period_is_the_unit() -> None:
    # Also of period 4 and 6: with those more would remain.
    assert shorten_loop("ab" * 12, SMALL) == "abab"


def test_a_unit_that_is_too_long_is_no_loop() -> None:
    unit = "abcdefghijklmnopqrstu"  # 21 characters
    assert shorten_loop(unit * 4, SMALL) == unit * 4
    assert shorten_loop(unit[:20] * 4, SMALL) == unit[:20] * 2


@given(st.text(alphabet="ab. \n", max_size=30), st.text(alphabet="abc\n", min_size=1, max_size=6), st.integers(0, 30))
def test_shortening_is_a_beginning_and_done_once(head: str, unit: str, count: int) -> None:
    text = head + unit * count
    shorter = shorten_loop(text, SMALL)
    assert text.startswith(shorter)
    assert shorten_loop(shorter, SMALL) == shorter
    assert bool(shorter.strip()) == bool(text.strip()) or len(text) < 8


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two", "One."),
        ("One. Two.", "One. Two."),
        ('He said "go."', 'He said "go."'),
        ('He said "go." Then', 'He said "go."'),
        ("It is 3.5 metres", ""),  # the stop of a number ends nothing
        ("Steps:\n1. Mix it.\n2.", "Steps:\n1. Mix it."),  # nor does that of a list
        ("Steps:\n1. Mix it", "Steps:"),
        ("a line\nanother", "a line"),
        ("Why? Be", "Why?"),
        ("他说。然后", "他说。"),
        ("他说。", "他说。"),
        ("```\nx = 1\n```", "```\nx = 1\n```"),
        ("no end", ""),
    ],
)
def test_the_last_complete_end(text: str, kept: str) -> None:
    assert text[: last_complete_end(text)].rstrip() == kept


@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_a_cut_and_a_stopped_text_are_trimmed_alike(finish: Finish) -> None:
    assert clean("One. Two", finish, "chat", LOOPS) == Cleaned("One.", trimmed=True)
    assert clean("One. Two.", finish, "chat", LOOPS) == Cleaned("One. Two.")


def test_trimming_leaves_no_empty_text() -> None:
    assert clean("forty-two", Finish.STOP, "chat", LOOPS) == Cleaned("forty-two")
    assert clean("forty-tw", Finish.LENGTH, "chat", LOOPS) == "unfinished"
    assert clean("\n\nforty-tw", Finish.LENGTH, "base", LOOPS) == "unfinished"
    assert clean(" \n\ufffd", Finish.STOP, "chat", LOOPS) == "empty"
    assert clean("", Finish.LENGTH, "base", LOOPS) == "empty"


def test_half_a_character_at_the_end_is_no_text() -> None:
    assert clean("Good. \ufffd", Finish.LENGTH, "base", LOOPS) == Cleaned("Good.")


def test_blanks_join_a_continuation_and_not_an_answer() -> None:
    assert clean(" and so on. ", Finish.STOP, "base", LOOPS) == Cleaned(" and so on.")
    assert clean(" And so on. ", Finish.STOP, "chat", LOOPS) == Cleaned("And so on.")


def test_a_loop_is_kept_where_trimming_would_remove_it() -> None:
    looping = "Good. " + "round and round " * 20
    kept = "Good. round and round round and round round and round"
    assert clean(looping, Finish.LENGTH, "base", LOOPS) == Cleaned(kept, looped=True)


@given(st.text(alphabet="ab.!\n c", max_size=60), st.sampled_from(list(Finish)), st.sampled_from(["base", "chat"]))
def test_what_is_kept_is_part_of_the_text_and_clean(text: str, finish: Finish, mode: str) -> None:
    result = clean(text, finish, mode, SMALL)  # type: ignore[arg-type]
    if not isinstance(result, Cleaned):
        assert result == "empty" if not text.strip() else result == "unfinished" and finish is Finish.LENGTH
        return
    assert result.text in text
    assert result.text.strip()
    assert result.text == result.text.rstrip()
    if finish is Finish.LENGTH and not result.looped:
        # Whether it was cut cannot be seen: it ends a sentence, or a line of the text.
        end = text.index(result.text) + len(result.text)
        assert result.text[-1] in ".!" or "\n" in text[end:] or last_complete_end(result.text) == len(result.text)


@pytest.mark.parametrize("values", [{"keep": 0}, {"keep": 5}, {"max_period": 0}])
def test_loops_that_would_never_end_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(PolarError, match="keep must be"):
        LoopConfig(**values)
