"""Does an execution carry out its plan, all of it, in its order, and nothing else? A check by program, for arithmetic.

A plan is a line of steps between semicolons (or lines, or sentences), each naming numbers and operations but no result:
``4 + 3; then - 5``. An execution has one equation a step: ``4 + 3 = 7; 7 - 5 = 2. Answer: 2``. The check is strict: it
refuses what it cannot follow, because an example that is kept teaches and one that is dropped costs only its draft.

"Explore-Execute Chain" (arXiv 2509.23946) asks for strict adherence and gets it by generating the execution from the
plan; that it is also verified, and by these rules, is ours.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Literal

Operator = Literal["+", "-", "*", "/"]

_SYMBOLS: dict[str, Operator] = {"+": "+", "-": "-", "*": "*", "/": "/", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"}
_WORDS: dict[str, Operator] = {
    "add": "+", "adding": "+", "plus": "+", "subtract": "-", "subtracting": "-", "minus": "-",
    "multiply": "*", "times": "*", "divide": "/",
}  # fmt: skip
# An operator is one only before a number, so that hyphens and bullets are not; the second sign is that of the number.
_TOKEN = re.compile(r"(?P<number>\d+(?:\.\d+)?)|(?P<operator>[-+*/\u00d7\u00f7\u2212])(?=\s*-?\s*\d)|=|[^\W\d_]+|\S|\n")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_STEP_END = re.compile(r"[;\n]|\.\s+(?=[A-Z])")
_LABEL = re.compile(r"(?:^|(?<=[;\n]))\s*(?:step\s*\d+\s*[.:)]|\d+[.:)](?=\s))", re.IGNORECASE)


class Broken(StrEnum):
    """Which rule of the check an answer breaks."""

    EMPTY_PLAN = "empty_plan"
    """The plan has no step."""
    VAGUE_STEP = "vague_step"
    """A step names no number, so that nobody can tell whether it was carried out."""
    PLAN_COMPUTES = "plan_computes"
    """The plan has an equals sign: results belong to the execution."""
    UNGROUNDED = "ungrounded"
    """The plan uses a number that the question does not have, or has less often."""
    SKIPPED_STEP = "skipped_step"
    """Fewer equations than steps."""
    ADDED_STEP = "added_step"
    """More equations than steps."""
    DEVIATES = "deviates"
    """An equation has other numbers, operations or another order than its step."""
    ARITHMETIC = "arithmetic"
    """An equation is false."""
    MALFORMED = "malformed"
    """Something around an equals sign is no single equation."""
    STRAY_NUMBER = "stray_number"
    """A number outside the equations that neither the plan nor an earlier equation gave."""
    ANSWER = "answer"
    """The last number is not the result of the last equation."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The first rule that is broken, and where."""

    kind: Broken
    detail: str


@dataclass(frozen=True, slots=True)
class _Operand:
    """A number and what is done with it; subtracting is adding the negative. No operator: the text names none."""

    operator: Operator | None
    value: Fraction

    def canonical(self) -> "_Operand":
        return _Operand("+", -self.value) if self.operator == "-" else self


@dataclass(frozen=True, slots=True)
class _Equation:
    text: str
    left: tuple[_Operand, ...]
    right: Fraction


class _Refused(Exception):
    def __init__(self, kind: Broken, detail: str) -> None:
        super().__init__(detail)
        self.violation = Violation(kind, detail)


def plan_violation(question: str, plan: str) -> Violation | None:
    """What is wrong with a plan by itself, or None."""
    try:
        _plan_steps(question, plan)
    except _Refused as refused:
        return refused.violation
    return None


def violation(question: str, plan: str, execution: str) -> Violation | None:
    """The first way in which ``execution`` does not carry out ``plan``, or None: it adheres.

    1. The plan has steps, each names numbers, none a result, and all numbers are the question's.
    2. The execution has as many equations as the plan has steps, each true.
    3. Equation i has the numbers of step i in their order, with the operations that the step names, and no others. A
       step that begins with an operation continues from the result before it; any other starts afresh.
    4. Numbers outside the equations come from the plan or from earlier results; the last number of all is the last
       result.
    """
    try:
        steps = _plan_steps(question, plan)
        equations, outside = _read(execution)
        _compare(steps, equations)
        _check_outside(steps, equations, outside)
    except _Refused as refused:
        return refused.violation
    return None


def _plan_steps(question: str, plan: str) -> list[tuple[_Operand, ...]]:
    steps: list[tuple[_Operand, ...]] = []
    for part in _STEP_END.split(_LABEL.sub(" ", _plain(plan))):
        text = part.strip(" \t.")
        if not text:
            continue
        if "=" in text:
            raise _Refused(Broken.PLAN_COMPUTES, f"step {text!r} gives a result")
        operands = _step_operands(text)
        if not operands:
            raise _Refused(Broken.VAGUE_STEP, f"step {text!r} names no number")
        steps.append(operands)
    if not steps:
        raise _Refused(Broken.EMPTY_PLAN, "the plan has no step")
    used = Counter(abs(operand.value) for step in steps for operand in step)
    given = Counter(Fraction(m["number"]) for m in _TOKEN.finditer(_plain(question)) if m["number"])
    if excess := used - given:
        raise _Refused(Broken.UNGROUNDED, f"the question does not give {_number(next(iter(excess)))}")
    return steps


def _step_operands(text: str) -> tuple[_Operand, ...]:
    operands: list[_Operand] = []
    operator: Operator | None = None  # the one that the next number takes; it stays in force within the step
    named, negative = False, False
    for match in _TOKEN.finditer(text):
        word = match.group().lower()
        if match["number"]:
            value = Fraction(match["number"])
            operands.append(_Operand(operator, -value if negative else value).canonical())
            named, negative = False, False
        elif (found := _WORDS.get(word) or (_SYMBOLS[word] if match["operator"] else None)) is not None:
            if named and found == "-":
                negative = not negative
            else:
                operator, named = found, True
    return tuple(operands)


def _read(execution: str) -> tuple[list[_Equation], list[tuple[int, Fraction]]]:
    """The equations in order, and the numbers outside them, each with the count of equations before it."""
    text = _LABEL.sub(" ", _plain(execution))
    tokens = list(_TOKEN.finditer(text))
    equations: list[_Equation] = []
    outside: list[tuple[int, Fraction]] = []
    loose: list[re.Match[str]] = []  # numbers and operators since the last word, sign or equation
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token["number"] or token["operator"]:
            loose.append(token)
            index += 1
        elif token.group() == "=" and loose:
            right, index = _result(tokens, index + 1)
            left = _expression(loose)
            if left is None or right is None or (index < len(tokens) and _goes_on(tokens[index])):
                raise _Refused(Broken.MALFORMED, f"{text[loose[0].start() : token.end() + 8].strip()!r}")
            equations.append(_Equation(text[loose[0].start() : tokens[index - 1].end()], left, right))
            loose = []
        else:
            outside += [(len(equations), value) for value in _numbers(loose)]
            loose = []
            index += 1
    outside += [(len(equations), value) for value in _numbers(loose)]
    return equations, outside


def _result(tokens: Sequence[re.Match[str]], index: int) -> tuple[Fraction | None, int]:
    """The number to the right of an equals sign, and the index after it."""
    negative = index < len(tokens) and _SYMBOLS.get(tokens[index].group()) == "-"
    index += negative
    if index >= len(tokens) or not tokens[index]["number"]:
        return None, index
    value = Fraction(tokens[index]["number"])
    return (-value if negative else value), index + 1


def _goes_on(token: re.Match[str]) -> bool:
    return bool(token["operator"]) or token.group() == "="


def _expression(tokens: Sequence[re.Match[str]]) -> tuple[_Operand, ...] | None:
    """Operands of ``4 - 3 * 2``; None where numbers and operators do not alternate."""
    operands: list[_Operand] = []
    operator: Operator | None = "+"
    named, negative = False, False
    for token in tokens:
        if token["number"]:
            if operator is None:
                return None
            value = Fraction(token["number"])
            operands.append(_Operand(operator, -value if negative else value).canonical())
            operator, named, negative = None, False, False
        elif operator is None:
            operator, named = _SYMBOLS[token.group()], True
        elif _SYMBOLS[token.group()] == "-" and not negative and (named or not operands):
            negative = True
        else:
            return None
    return tuple(operands) if operator is None else None


def _compare(steps: Sequence[tuple[_Operand, ...]], equations: Sequence[_Equation]) -> None:
    before: Fraction | None = None
    for number, (step, equation) in enumerate(zip(steps, equations, strict=False), start=1):
        left = equation.left
        if before is not None and step[0].operator is not None:
            if left[0] != _Operand("+", before):
                raise _Refused(
                    Broken.DEVIATES, f"step {number} goes on from {_number(before)}, {equation.text!r} does not"
                )
            left = left[1:]
        else:
            # Nothing stands before the first number of a fresh start, whatever the step calls the operation.
            step = (_Operand("+", step[0].value), *step[1:])
        if len(step) != len(left) or not all(map(_agrees, step, left)):
            raise _Refused(Broken.DEVIATES, f"step {number} is not what {equation.text!r} does")
        if _value(equation.left) != equation.right:
            raise _Refused(Broken.ARITHMETIC, f"{equation.text!r} is false")
        before = equation.right
    if len(equations) < len(steps):
        raise _Refused(Broken.SKIPPED_STEP, f"{len(steps)} steps and {len(equations)} equations")
    if len(equations) > len(steps):
        raise _Refused(Broken.ADDED_STEP, f"{len(steps)} steps and {len(equations)} equations")


def _agrees(planned: _Operand, done: _Operand) -> bool:
    if planned.operator is None:
        return abs(planned.value) == abs(done.value)
    return planned == done


def _value(operands: Sequence[_Operand]) -> Fraction | None:
    """The value by the usual precedence; None where it divides by zero."""
    terms: list[Fraction] = []
    for operand in operands:
        if operand.operator == "+":
            terms.append(operand.value)
        elif operand.operator == "*":
            terms[-1] *= operand.value
        elif operand.value == 0:
            return None
        else:
            terms[-1] /= operand.value
    return sum(terms, Fraction(0))


def _numbers(tokens: Sequence[re.Match[str]]) -> list[Fraction]:
    """The numbers of a run of tokens, a minus in front of the first taken as its sign."""
    values = [Fraction(token["number"]) for token in tokens if token["number"]]
    if values and _SYMBOLS.get(tokens[0].group()) == "-":
        values[0] = -values[0]
    return values


def _check_outside(
    steps: Sequence[tuple[_Operand, ...]], equations: Sequence[_Equation], outside: Sequence[tuple[int, Fraction]]
) -> None:
    planned = {abs(operand.value) for step in steps for operand in step}
    for before, value in outside:
        if abs(value) not in planned and value not in [e.right for e in equations[:before]]:
            raise _Refused(Broken.STRAY_NUMBER, f"{_number(value)} comes from nowhere")
    last = equations[-1].right
    if outside and outside[-1][0] == len(equations) and outside[-1][1] != last:
        raise _Refused(Broken.ANSWER, f"ends with {_number(outside[-1][1])}, the last result is {_number(last)}")


def _plain(text: str) -> str:
    return _THOUSANDS.sub("", text)


def _number(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
