"""An evaluation in words: Markdown, tables for the terminal, and JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from rewards.polar.bootstrap import Estimate
from rewards.polar.evaluate import Measured, Report, Result
from rewards.polar.files import finite
from rewards.polar.variants import LENGTH_RULES

NOTE = (
    "Brackets: 95% intervals, bootstrap over prompts. The best length rule is chosen on these very triples: a maximum, "
    "biased upwards. Differences are paired and not corrected for being several."
)


@dataclass(frozen=True, slots=True)
class _Grid:
    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def markdown(report: Report) -> str:
    """All tables, one after the other, and the note that they need."""
    parts = []
    for grid in _grids(report):
        lines = [grid.headings, ("---",) + ("---:",) * (len(grid.headings) - 1), *grid.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"**{grid.title}**\n\n{text}")
    return "\n\n".join([*parts, NOTE]) + "\n"


def tables(report: Report) -> list[Table]:
    """The same for the terminal."""
    made = []
    for grid in _grids(report):
        table = Table(title=escape(grid.title))
        for place, heading in enumerate(grid.headings):
            table.add_column(escape(heading), justify="right" if place else "left")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        made.append(table)
    made[-1].caption = NOTE
    return made


def to_json(report: Report) -> str:
    """The whole report; an infinite end of an interval is null, since JSON has no infinity."""
    whole = asdict(report)
    for line, difference in zip(whole["differences"], report.differences, strict=True):
        line["verdict"] = difference.verdict
    return json.dumps(finite(whole), indent=1, allow_nan=False, ensure_ascii=False)


def _grids(report: Report) -> Iterator[_Grid]:
    counts = f"{report.triples} triples of {report.prompts} prompts"
    headings = ("scorer", "variant", "accuracy", "margin", "Bradley-Terry loss", "prompts", "triples", "failed")
    rows = [_row(result, report) for result in report.results]
    yield _Grid(f"Preference accuracy with a reference, {counts}", headings, rows)
    main = [r for r in report.results if r.variant == "with reference" or _is_bar(r, report)]
    categories = sorted({category for result in main for category in result.categories})
    if categories:
        by_category = [_category_row(category, main) for category in categories]
        yield _Grid("Accuracy by category", ("category", "triples", *(r.name for r in main)), by_category)
    if report.differences:
        lines: list[tuple[str, ...]] = [
            (d.first, d.second, _cell(d.difference, "+.3f"), d.verdict, str(d.prompts), str(d.triples))
            for d in report.differences
        ]
        columns = ("first", "second", "difference of accuracy", "first is", "prompts", "triples")
        yield _Grid("Paired differences", columns, lines)


def _is_bar(result: Result, report: Report) -> bool:
    return result.variant == "baseline" and (result.name not in LENGTH_RULES or result.name == report.best_length_rule)


def _row(result: Result, report: Report) -> tuple[str, ...]:
    name = f"{result.name} (best length rule)" if result.name == report.best_length_rule else result.name
    found = result.overall
    if found is None:
        return (name, result.variant, "-", "-", "-", "0", "0", str(report.triples))
    loss = _cell(found.loss)
    numbers = (str(found.prompts), str(found.triples), str(found.failed))
    return (name, result.variant, _cell(found.accuracy), _cell(found.margin), loss, *numbers)


def _category_row(category: str, results: Sequence[Result]) -> tuple[str, ...]:
    found: list[Measured | None] = [result.categories.get(category) for result in results]
    most = max((part.triples for part in found if part is not None), default=0)
    return (category, str(most), *(_cell(part.accuracy if part else None) for part in found))


def _cell(estimate: Estimate | None, form: str = ".3f") -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
