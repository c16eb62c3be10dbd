"""Preference accuracy with a reference: hand-made triples, and scorers whose secret is known."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rewards.polar.evaluate import (
    Report,
    Result,
    evaluate,
    measure,
    paired_difference,
    preference_accuracy,
    score_triples,
)
from rewards.polar.evaluation_report import markdown, tables, to_json
from rewards.polar.types import PolarError, PolarItem, Triple
from rewards.polar.variants import LENGTH_RULES, with_shuffled_references, without_reference
from rewards.types import Score, ScoreFailure
from rollouts.types import Message


def triple(prompt: int, chosen: str, rejected: str, reference: str = "ref", category: str = "") -> Triple:
    metadata = {"category": category} if category else {}
    return Triple(f"p{prompt}", reference, chosen, rejected, metadata=metadata)


def number(items: Sequence[PolarItem]) -> list[Score]:
    """The output is its own score; what is no number fails."""
    return [_number(str(item.output)) for item in items]


def _number(text: str) -> Score:
    try:
        return float(text)
    except ValueError:
        return ScoreFailure(f"{text} is no number")


def by_reference(items: Sequence[PolarItem]) -> list[Score]:
    """High where the output starts like the reference; a scorer that must have the right one."""
    return [float(str(i.output)[:3] == str(i.reference)[:3] != "") for i in items]


def known(count: int = 30) -> list[Triple]:
    """Each prompt's reference names it; chosen starts the same way, rejected does not; lengths say nothing."""
    return [
        triple(k, f"{k:03d} yes", "xxx" + " no." * (k % 2), f"{k:03d}" + "-" * (k % 7), "even" if k % 2 == 0 else "odd")
        for k in range(count)
    ]


def test_accuracy_margin_and_loss_of_a_hand_made_set() -> None:
    some = [triple(0, "2", "1"), triple(0, "1", "1"), triple(1, "0", "3"), triple(2, "5", "x"), triple(2, "4", "2")]
    found = preference_accuracy(some, number).overall
    assert found is not None
    # One right, a tie, one wrong, one failed, one right.
    assert found.accuracy.value == 2.5 / 4
    assert found.margin.value == (1 + 0 - 3 + 2) / 4
    losses = [math.log1p(math.exp(-m)) for m in (1, 0, -3, 2)]
    assert found.loss is not None and found.loss.value == pytest.approx(sum(losses) / 4)
    assert (found.prompts, found.triples, found.failed) == (3, 4, 1)
    assert 0 <= found.accuracy.low <= found.accuracy.value <= found.accuracy.high <= 1


def test_scores_that_are_no_finite_number_fail() -> None:
    found = preference_accuracy([triple(0, "1", "nan"), triple(1, "inf", "0"), triple(2, "1", "0")], number).overall
    assert found is not None and (found.triples, found.failed) == (1, 2)
    lost = preference_accuracy([triple(0, "x", "0", category="c")], number)
    assert lost.overall is None and lost.categories == {"c": None}


def test_a_zero_head_is_at_chance_with_loss_ln_2() -> None:
    found = preference_accuracy(known(), lambda items: [0.0] * len(items)).overall
    assert found is not None and found.loss is not None
    assert (found.accuracy.value, found.margin.value) == (0.5, 0.0)
    assert (found.loss.value, found.loss.low, found.loss.high) == pytest.approx((math.log(2),) * 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=10))
def test_turning_chosen_and_rejected_turns_everything(rows: list[tuple[int, int, int]]) -> None:
    plain = preference_accuracy([triple(p, str(a), str(b)) for p, a, b in rows], number).overall
    turned = preference_accuracy([triple(p, str(b), str(a)) for p, a, b in rows], number).overall
    assert plain is not None and turned is not None and plain.loss is not None and turned.loss is not None
    assert turned.accuracy.value == pytest.approx(1 - plain.accuracy.value)
    assert turned.accuracy.low == pytest.approx(1 - plain.accuracy.high)
    assert turned.margin.value == pytest.approx(-plain.margin.value)
    # log(1 + e^-m) - log(1 + e^m) = -m
    assert plain.loss.value - turned.loss.value == pytest.approx(-plain.margin.value)


def test_categories_add_up_to_the_whole() -> None:
    some = [triple(k, "1", "0" if k < 4 else "2", category="ab"[k % 2]) for k in range(6)]
    result = preference_accuracy([*some, triple(6, "1", "0")], number)
    assert result.overall is not None and result.overall.triples == 7
    parts = result.categories
    assert set(parts) == {"a", "b"}
    # Prompts 0, 2, 4 and 1, 3, 5: two of three are right.
    for part in parts.values():
        assert part is not None and (part.triples, part.prompts) == (3, 3)
        assert part.accuracy.value == pytest.approx(2 / 3)


def test_an_item_is_scored_once_and_neighbours_share_prompt_and_reference() -> None:
    seen: list[PolarItem] = []

    def record(items: Sequence[PolarItem]) -> list[Score]:
        seen.extend(items)
        return [float(len(str(item.output))) for item in items]

    turns = [Message("user", "q")]
    some = [Triple(turns, "r", "aaa", "b"), Triple(turns, "r", "aaa", "cc"), Triple(turns, "s", "aaa", "b")]
    assert score_triples(some, record) == [(3.0, 1.0), (3.0, 2.0), (3.0, 1.0)]
    assert [(i.reference, i.output) for i in seen] == [("r", "aaa"), ("r", "b"), ("r", "cc"), ("s", "aaa"), ("s", "b")]


def test_a_function_that_loses_items_is_caught() -> None:
    with pytest.raises(PolarError, match="short gave 1 scores for 2 items"):
        score_triples([triple(0, "a", "b")], lambda items: [1.0], "short")


@given(st.lists(st.tuples(st.integers(0, 40), st.text("ab", max_size=6)), min_size=2, max_size=60), st.integers(0, 9))
def test_shuffled_references_are_those_of_other_prompts(rows: list[tuple[int, str]], seed: int) -> None:
    if len({prompt for prompt, _ in rows}) < 2:
        return
    some = [triple(p, "c", "r", f"{p}:{text}") for p, text in rows]
    made = with_shuffled_references(some, seed)
    given_to: dict[object, object] = {}
    for before, after in zip(some, made, strict=True):
        assert replace(after, reference=before.reference) == before
        owner = str(after.reference).split(":")[0]
        assert f"p{owner}" != before.prompt
        assert given_to.setdefault(before.prompt, owner) == owner
    assert len(set(given_to.values())) == len(given_to)  # each prompt's reference goes to one other prompt
    assert made == with_shuffled_references(some, seed)


def test_references_are_exchanged_among_similar_lengths() -> None:
    some = [triple(k, "c", "r", "x" * k) for k in range(64)]
    made = with_shuffled_references(some, 4)
    assert max(abs(len(str(a.reference)) - len(str(b.reference))) for a, b in zip(some, made, strict=True)) < 8
    assert made != with_shuffled_references(some, 5)


def test_shuffling_needs_two_prompts() -> None:
    with pytest.raises(PolarError, match="at least two prompts"):
        with_shuffled_references([triple(0, "a", "b", "r"), triple(0, "a", "c", "s")])


def test_length_rules() -> None:
    items = [PolarItem("p", "1234", output) for output in ("", "123", "123456", [Message("assistant", "12")])]
    scores = {name: list(rule(items)) for name, rule in LENGTH_RULES.items()}
    assert scores == {
        "longer wins": [0, 3, 6, 2],
        "shorter wins": [0, -3, -6, -2],
        "closer length wins": [-4, -1, -2, -2],
    }


def test_a_scorer_that_reads_the_reference_is_told_from_one_that_does_not() -> None:
    quality: Callable[[Sequence[PolarItem]], list[Score]] = lambda items: [float("yes" in str(i.output)) for i in items]  # noqa: E731
    report = evaluate(known(), {"reader": by_reference, "judge": quality}, similarity={"embedding": by_reference})
    value = {(r.name, r.variant): r.overall.accuracy.value for r in report.results if r.overall}
    assert value["reader", "with reference"] == 1.0
    assert value["reader", "no reference"] == value["reader", "shuffled references"] == 0.5
    assert {value["judge", v] for v in ("with reference", "no reference", "shuffled references")} == {1.0}
    assert value["longer wins", "baseline"] + value["shorter wins", "baseline"] == 1.0
    assert report.best_length_rule in LENGTH_RULES
    assert value[report.best_length_rule, "baseline"] == max(value[name, "baseline"] for name in LENGTH_RULES)
    verdicts = {(d.first, d.second): d.verdict for d in report.differences}
    assert verdicts["reader", "reader, no reference"] == verdicts["reader", "reader, shuffled references"] == "better"
    assert verdicts["judge", "judge, no reference"] == verdicts["reader", "judge"] == "undecided"
    assert verdicts["reader", "embedding"] == "undecided"
    assert len(verdicts) == len(report.differences) == 2 * 4 + 1
    assert (report.prompts, report.triples) == (30, 30)


def test_only_logits_have_a_loss() -> None:
    report = evaluate(known(), {"m": by_reference}, similarity={"embedding": by_reference})
    for result in report.results:
        assert result.overall is not None
        assert (result.overall.loss is None) == (result.variant == "baseline")


def test_a_difference_is_over_the_triples_that_both_scored() -> None:
    some = [triple(k, "1", "0") for k in range(4)]
    right, wrong = (1.0, 0.0), (0.0, 1.0)
    made = paired_difference(some, ("a", [right, right, None, right]), ("b", [wrong, right, right, None]))
    assert made.difference is not None and made.difference.value == 0.5
    assert (made.first, made.second, made.prompts, made.triples) == ("a", "b", 2, 2)
    none = paired_difference(some[:1], ("a", [None]), ("b", [right]))
    assert (none.difference, none.triples, none.verdict) == (None, 0, "undecided")


def test_a_difference_is_paired() -> None:
    """Hard prompts are hard for both: five right by one alone are a finding although both accuracies vary much more."""
    some = [triple(k, "1", "0") for k in range(60)]
    right, wrong = (1.0, 0.0), (0.0, 1.0)
    first = [right if k < 35 else wrong for k in range(60)]
    second = [right if k < 28 else wrong for k in range(60)]
    ahead, behind = (
        paired_difference(some, a, b) for a, b in ((("a", first), ("b", second)), (("b", second), ("a", first)))
    )
    assert (ahead.verdict, behind.verdict) == ("better", "worse")
    a, b = (measure(some, pairs, "s", "baseline").overall for pairs in (first, second))
    assert a is not None and b is not None and a.accuracy.low < b.accuracy.high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triples": []}, "no triple to evaluate"),
        ({"variants": ["no reference"]}, "variants must be of"),
        ({"variants": ["with reference", "baseline"]}, "variants must be of"),
        ({"scorers": {"longer wins": number}}, "two scorers are called 'longer wins'"),
        ({"similarity": {"m": number}}, "two scorers are called 'm'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments: dict[str, object], message: str) -> None:
    whole: dict[str, object] = {"triples": known(4), "scorers": {"m": number}} | arguments
    with pytest.raises(PolarError, match=message):
        evaluate(**whole)  # type: ignore[arg-type]


def report_of() -> Report:
    return evaluate(
        [*known(8), triple(9, "009", "[x] no", "009", category="a|b")], {"[m]": by_reference, "lost": number}
    )


def test_markdown_has_every_number_in_its_column() -> None:
    text = markdown(report_of())
    lines = text.splitlines()
    assert "**Preference accuracy with a reference, 9 triples of 9 prompts**" in lines
    row = next(line for line in lines if line.startswith("| [m] | with reference |"))
    assert row.startswith("| [m] | with reference | 1.000 [") and row.endswith("| 9 | 9 | 0 |")
    assert next(line for line in lines if line.startswith("| lost | no reference")).endswith(
        "| - | - | - | 0 | 0 | 9 |"
    )
    assert sum("(best length rule)" in line for line in lines) == 1
    assert any(line.startswith("| a\\|b | 1 | 1.000 [0.000, 1.000] | - |") for line in lines)
    assert any(
        line.startswith("| [m] | [m], no reference | +0.500 [") and "| better | 9 | 9 |" in line for line in lines
    )
    for block in text.split("\n\n"):
        table = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in table}) <= 1


def test_the_terminal_shows_the_same_cells() -> None:
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(report_of()):
        console.print(table)
    shown = " ".join(console.export_text().split())
    for line in markdown(report_of()).splitlines():
        if line.startswith("| ") and "---" not in line:
            for cell in line.replace("\\|", "\0").strip("| ").split(" | "):
                assert cell.replace("\0", "|").strip() in shown


def test_json_holds_the_report_and_has_no_infinities() -> None:
    report = report_of()
    whole = json.loads(to_json(report))
    assert whole["best_length_rule"] == report.best_length_rule
    first: Result = report.results[0]
    assert first.overall is not None
    assert whole["results"][0]["overall"]["accuracy"]["low"] == first.overall.accuracy.low
    assert whole["results"][0]["categories"]["a|b"]["margin"] == {"value": 1.0, "low": None, "high": None}
    assert whole["differences"][0]["verdict"] == "better"
    assert next(r for r in whole["results"] if r["name"] == "lost")["overall"] is None


def test_without_reference_nothing_else_changes() -> None:
    for before, after in zip(known(3), without_reference(known(3)), strict=True):
        assert after == replace(before, reference="")
