"""The adherence check by hand: what carries a plan out, and every planted way of not doing so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.adherence import Broken, plan_violation, violation

QUESTION = "State the final answer to the following arithmetic problem: 4 + 3 - 9 ="
PLAN = "4 + 3; then - 9"
EXECUTION = "4 + 3 = 7; 7 - 9 = -2. Answer: -2"


@pytest.mark.parametrize(
    ("plan", "execution"),
    [
        (PLAN, EXECUTION),
        ("4 + 3. Then subtract 9.", "4 + 3 = 7. 7 - 9 = -2. The answer is -2."),
        ("1. 4 + 3\n2. - 9", "1. 4 + 3 = 7\n2. 7 - 9 = -2\n-2"),
        ("Step 1: Add 4 and 3; step 2: subtract 9", "Step 1: 4 + 3 = 7; step 2: 7 - 9 = -2. Answer: -2"),
        # Another order: 4 - 9 = -5, and -5 + 3 = -2; the negative result is the left operand.
        ("4 - 9; then + 3", "4 - 9 = -5; -5 + 3 = -2. Answer: -2"),
        ("4 + 3 - 9", "4 + 3 - 9 = -2. Answer: -2"),
        # Words around the equations are free, and may repeat what is known.
        (PLAN, "Left-to-right: first add 3 to 4: 4 + 3 = 7; from 7 take 9: 7 - 9 = -2. Answer: -2"),
        (PLAN, "4 + 3 = 7; 7 - 9 = -2"),
        ("4 + 3; then \u2212 9", "4 + 3 = 7; 7 \u2212 9 = \u22122. Answer: \u22122"),
    ],
)
def test_an_execution_that_does_what_the_plan_says_adheres(plan: str, execution: str) -> None:
    assert violation(QUESTION, plan, execution) is None


@pytest.mark.parametrize(
    ("execution", "kind"),
    [
        ("4 + 3 = 7. Answer: -2", Broken.SKIPPED_STEP),
        ("Answer: -2", Broken.SKIPPED_STEP),
        ("", Broken.SKIPPED_STEP),
        ("4 + 3 = 7; 7 - 9 = -2; -2 + 0 = -2. Answer: -2", Broken.ADDED_STEP),
        ("4 - 9 = -5; -5 + 3 = -2. Answer: -2", Broken.DEVIATES),  # right, by another plan
        ("3 + 4 = 7; 7 - 9 = -2. Answer: -2", Broken.DEVIATES),  # another order within the step
        ("4 + 3 = 7; 4 - 9 = -5. Answer: -5", Broken.DEVIATES),  # does not go on from the result
        ("4 + 3 = 7; 9 - 7 = 2. Answer: 2", Broken.DEVIATES),
        ("4 - 3 = 1; 1 - 9 = -8. Answer: -8", Broken.DEVIATES),  # another operation
        ("4 + 2 = 6; 6 - 9 = -3. Answer: -3", Broken.DEVIATES),  # another number
        ("4 + 3 = 8; 8 - 9 = -1. Answer: -1", Broken.ARITHMETIC),
        ("4 + 3 = 7; 7 - 9 = 2. Answer: -2", Broken.ARITHMETIC),  # a lost sign, put right at the end
        ("4 + 3 = 7 - 9 = -2. Answer: -2", Broken.MALFORMED),  # says that 7 is 7 - 9
        ("4 + 3 = ; 7 - 9 = -2. Answer: -2", Broken.MALFORMED),
        ("4 3 = 7; 7 - 9 = -2. Answer: -2", Broken.MALFORMED),
        ("4 + 3 = 7; 7 - 9 = -2. Answer: 5", Broken.STRAY_NUMBER),
        ("the result is -2; 4 + 3 = 7; 7 - 9 = -2. Answer: -2", Broken.STRAY_NUMBER),  # known before it is computed
        ("4 + 3 = 7; 7 - 9 = -2. Answer: 7", Broken.ANSWER),
        ("4 + 3 = 7; 7 - 9 = -2. Answer: 2", Broken.STRAY_NUMBER),
    ],
)
def test_an_execution_that_does_not_is_refused_and_the_reason_named(execution: str, kind: Broken) -> None:
    found = violation(QUESTION, PLAN, execution)
    assert found is not None
    assert found.kind is kind, found


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        ("", Broken.EMPTY_PLAN),
        (" ; . ", Broken.EMPTY_PLAN),
        ("add everything", Broken.VAGUE_STEP),
        ("4 + 3; then subtract the rest", Broken.VAGUE_STEP),
        ("4 + 3 = 7; then - 9", Broken.PLAN_COMPUTES),
        ("5 + 2; then - 9", Broken.UNGROUNDED),  # comes to the same, and is about other numbers
        ("4 + 4; then - 9", Broken.UNGROUNDED),  # the question has one 4
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(plan: str, kind: Broken) -> None:
    found = plan_violation(QUESTION, plan)
    assert found is not None
    assert found.kind is kind
    assert violation(QUESTION, plan, EXECUTION) == found


def test_multiplication_binds_first_and_thousands_are_one_number() -> None:
    # 2 + 3 * 4 = 2 + 12 = 14, not 20.
    assert violation("2 + 3 * 4 =", "2 + 3 * 4", "2 + 3 * 4 = 14") is None
    found = violation("2 + 3 * 4 =", "2 + 3 * 4", "2 + 3 * 4 = 20")
    assert found is not None and found.kind is Broken.ARITHMETIC
    assert violation("What is 1,000 / 8?", "1000 / 8", "1,000 / 8 = 125. Answer: 125") is None
    # A division by zero has no true result.
    found = violation("4 / 0 =", "4 / 0", "4 / 0 = 0")
    assert found is not None and found.kind is Broken.ARITHMETIC


def test_a_negative_number_is_told_from_a_minus() -> None:
    # 4 - -3 = 7, and 7 + -9 = -2.
    assert violation("4 - -3 + -9 =", "4 - -3; then + -9", "4 - -3 = 7; 7 + -9 = -2. Answer: -2") is None
    found = violation("4 - -3 =", "4 - -3", "4 - 3 = 1. Answer: 1")
    assert found is not None and found.kind is Broken.DEVIATES


@given(
    numbers=st.lists(st.integers(0, 99), min_size=2, max_size=5),
    signs=st.lists(st.sampled_from("+-"), min_size=4, max_size=4),
    where=st.integers(0, 3),
    by=st.integers(1, 9),
)
def test_a_written_out_sum_adheres_and_one_wrong_result_in_it_does_not(
    numbers: list[int], signs: list[str], where: int, by: int
) -> None:
    question = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=False)) + " ="
    plan, results, total = [], [], numbers[0]
    for index, (sign, number) in enumerate(zip(signs, numbers[1:], strict=False)):
        plan.append(f"{numbers[0]} {sign} {number}" if index == 0 else f"then {sign} {number}")
        left = total
        total = total + number if sign == "+" else total - number
        results.append((left, sign, number, total))

    def written(wrong: int | None) -> str:
        lines = [f"{a} {s} {b} = {r + (by if i == wrong else 0)}" for i, (a, s, b, r) in enumerate(results)]
        return "; ".join(lines)

    assert violation(question, "; ".join(plan), f"{written(None)}. Answer: {total}") is None
    assert violation(question, "; ".join(plan), f"{written(where % len(results))}. Answer: {total}") is not None
