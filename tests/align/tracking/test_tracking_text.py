import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.tracking.text import bottleneck, clean, count, cut, duration, number, phases, spark


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\r\nc", "a ↵ b ↵ c"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07end", "red end"),
        ("a\tb  c", "a b c"),
        ("left\u202eright\u200b", "leftright"),
        ("half \ud83d", "half �"),
        ("[bold]kept[/bold]", "[bold]kept[/bold]"),
        ("日本語", "日本語"),
    ],
)
def test_clean_by_example(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text())
def test_clean_leaves_nothing_that_steers_a_terminal(text: str) -> None:
    assert not [character for character in clean(text) if unicodedata.category(character) in ("Cc", "Cf", "Cs")]


@given(st.text(), st.integers(10, 200))
def test_cut_fits(text: str, limit: int) -> None:
    assert len(cut(text, limit)) <= limit


@given(st.text(), st.integers(10, 200))
def test_cut_changes_only_what_is_too_long(text: str, limit: int) -> None:
    assert (cut(text, limit) == text) == (len(text) <= limit)


def test_cut_keeps_both_ends() -> None:
    assert cut("a" * 50 + "answer", 20) == "a" * 12 + " … " + "nswer"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"), (0.0, "0"), (1.0, "1.00"), (0.4051, "0.405"), (-1.256, "-1.26"), (12.34, "12.3"), (1234.5, "1234"),
        (2e-5, "2.00e-05"), (0.0123, "0.0123"), (1e9, "1.00e+09"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_counts() -> None:
    assert [count(value) for value in (30.0, 2.5, None, math.nan)] == ["30", "2.50", "-", "nan"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "-"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (271, "4:31"), (3723, "1:02:03"), (-1, "0 s")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_spark_runs_from_lowest_to_highest() -> None:
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"
    assert spark([2.0, 2.0]) == "▁▁"
    assert spark([1.0]) == spark([math.nan, 1.0]) == ""
    assert len(spark([float(value) for value in range(100)])) == 16


def test_phases_and_the_longest_of_them() -> None:
    step = {"timing_s/collect": 3.0, "timing_s/learn": 6.0, "timing_s/other": 1.0, "timing_s/step": 10.0, "beta": 1.0}
    assert list(phases(step).items()) == [("learn", 6.0), ("collect", 3.0), ("other", 1.0)]
    assert bottleneck(step) == "learn 60%"
    assert bottleneck({"timing_s/step": 3.0}) == ""
