"""``align compare``: groups of finished runs side by side, held-out accuracy against labelled pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from align.errors import UserError
from align.tracking.curves import PHASE_COLOURS, STYLE
from align.tracking.intervals import over_seeds
from align.tracking.jsonl import METRICS_FILE, read_metrics


@dataclass(frozen=True, slots=True)
class Curve:
    """One run: at each evaluated step the pairs that had been labelled until then, and held-out accuracy."""

    pairs: Mapping[int, float]
    accuracy: Mapping[int, float]


def read_curve(folder: Path) -> Curve:
    """The curve of a run folder. Raises ``UserError`` when the run has evaluated nothing."""
    file = folder / METRICS_FILE
    if not file.exists():
        raise UserError(f"{folder}: no {METRICS_FILE} in it; give the folder of a run")
    labelled, pairs, accuracy = 0.0, {}, {}
    for step, row in read_metrics(file):
        labelled += row.get("label/pairs", 0.0)
        if "eval/accuracy" in row:
            pairs[step], accuracy[step] = labelled, row["eval/accuracy"]
    if not accuracy:
        raise UserError(f"{folder}: no held-out accuracy was measured; run it with schedule.evaluate_every")
    return Curve(pairs, accuracy)


def groups(words: Sequence[str]) -> dict[str, list[Curve]]:
    """Curves by label, from words such as ``xpo=runs/xpo-0``; a label may come again."""
    found: dict[str, list[Curve]] = {}
    for word in words:
        label, equals, folder = word.partition("=")
        if not (label and equals and folder):
            raise UserError(f"'{word}': write LABEL=FOLDER, for example xpo=runs/xpo-0")
        found.setdefault(label, []).append(read_curve(Path(folder)))
    return found


def shared_steps(curves: Mapping[str, Sequence[Curve]]) -> list[int]:
    """The steps at which every run was evaluated."""
    every = [set(curve.accuracy) for group in curves.values() for curve in group]
    steps = sorted(set.intersection(*every))
    if not steps:
        raise UserError("these runs share no step at which they were evaluated; run them with one schedule")
    return steps


def compare_table(curves: Mapping[str, Sequence[Curve]]) -> Table:
    """A line for each group and shared step; with two groups of as many runs also the paired difference."""
    table = Table(caption="Brackets: 95% intervals over runs, Student's t. The difference is paired, run by run.")
    for heading in ("step", "group", "runs", "labelled pairs", "held-out accuracy"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    names = list(curves)
    for step in shared_steps(curves):
        for name in names:
            group = curves[name]
            pairs = sum(curve.pairs[step] for curve in group) / len(group)
            table.add_row(
                str(step), name, str(len(group)), f"{pairs:.0f}", _interval([c.accuracy[step] for c in group])
            )  # fmt: skip
        if len(names) == 2 and len(curves[names[0]]) == len(curves[names[1]]):
            first, second = (curves[name] for name in names)
            gaps = [a.accuracy[step] - b.accuracy[step] for a, b in zip(first, second, strict=True)]
            table.add_row(str(step), f"{names[0]} - {names[1]}", str(len(gaps)), "", _interval(gaps, sign=True))
    return table


def plot_comparison(curves: Mapping[str, Sequence[Curve]], path: Path) -> Path:
    """Draws accuracy against labelled pairs: runs thinly, means with their intervals; returns ``path``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.8), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axis: Any = figure.subplots()
        for colour, (name, group) in zip(PHASE_COLOURS, curves.items(), strict=False):
            for curve in group:
                axis.plot(
                    list(curve.pairs.values()), list(curve.accuracy.values()), color=colour, linewidth=0.8, alpha=0.5
                )
            steps = shared_steps(curves)
            x = [sum(curve.pairs[step] for curve in group) / len(group) for step in steps]
            ends = [over_seeds([curve.accuracy[step] for curve in group]) for step in steps]
            label = f"{name}, {len(group)} runs"
            axis.plot(x, [mean for mean, _, _ in ends], color=colour, marker="o", markersize=4, label=label)
            if all(math.isfinite(low) for _, low, _ in ends):
                axis.fill_between(
                    x, [low for _, low, _ in ends], [high for *_, high in ends], color=colour, alpha=0.14, linewidth=0
                )
        axis.set_title("Held-out accuracy, mean and 95% interval over runs")
        axis.set_xlabel("labelled pairs")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left")
        figure.savefig(path, dpi=130)
    return path


def _interval(values: Sequence[float], sign: bool = False) -> str:
    mean, low, high = over_seeds(values)
    form = "+.3f" if sign else ".3f"
    return f"{mean:{form}}" if math.isinf(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"
