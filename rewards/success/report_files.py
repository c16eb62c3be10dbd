"""A report on a success model as Markdown, JSON and a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rewards.polar.bootstrap import Estimate
from rewards.polar.files import finite, whole_file, write_text
from rewards.success.report import SuccessReport

NOTE = (
    "Brackets: 95% intervals, bootstrap over episodes. Frames of an undone task that are called done end episodes and "
    "are paid as successes; where successes are rare, a small share of them makes most calls wrong."
)
INK, BLUE, ORANGE, GREEN = "#1f2933", "#2f6fdb", "#e07a1f", "#1a936f"


def write_report(report: SuccessReport, folder: Path) -> tuple[Path, Path, Path]:
    """``success.md``, ``success.json`` and ``success.png`` in ``folder``, each whole or absent."""
    paths = folder / "success.md", folder / "success.json", folder / "success.png"
    write_text(paths[0], markdown(report))
    write_text(paths[1], to_json(report) + "\n")
    with whole_file(paths[2]) as temporary:
        draw(report, temporary)
    return paths


def markdown(report: SuccessReport) -> str:
    """The tables of frames and of episodes, and the note that they need."""
    frames = [
        (
            rates.task,
            f"{rates.threshold:.4g}",
            str(rates.counts.total),
            _percent(rates.prevalence),
            _percent(rates.false_positive_rate),
            _percent(rates.false_negative_rate),
            _percent(rates.precision),
            _percent(rates.recall),
        )
        for rates in report.frames
    ]
    headings = ("task", "threshold", "frames", "prevalence", "FPR", "FNR", "precision", "recall")
    parts = [_table("Frames", headings, frames)]
    if report.episodes:
        episodes = [
            (
                rates.task,
                rates.detector,
                str(rates.episodes),
                str(rates.successes),
                str(rates.ends),
                _percent(rates.false_ends),
                _percent(rates.misses),
                _percent(rates.precision),
                _number(rates.lateness),
                _number(rates.lead),
            )
            for rates in report.episodes
        ]
        columns = ("task", "detector", "episodes", "with success", "ended", "false ends", "missed", "precision",
                    "steps late", "steps early (false)")  # fmt: skip
        parts.append(_table("Episodes", columns, episodes))
    return "\n\n".join([*parts, NOTE]) + "\n"


def to_json(report: SuccessReport) -> str:
    """The whole report; an infinite end of an interval is null."""
    return json.dumps(finite(asdict(report)), indent=1, allow_nan=False, ensure_ascii=False)


def draw(report: SuccessReport, target: Path) -> None:
    """The rates of frames over the threshold, a panel for each task, as PNG."""
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(report.curves), 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(report.curves), squeeze=False)[0]
    for axis, (task, points) in zip(panels, report.curves.items(), strict=True):
        x = [math.log10(p.threshold / (1 - p.threshold)) for p in points]
        for label, colour, values in (
            ("false positive rate", ORANGE, [p.false_positive_rate for p in points]),
            ("false negative rate", BLUE, [p.false_negative_rate for p in points]),
            ("precision", GREEN, [p.precision for p in points]),
        ):
            axis.plot(x, [math.nan if v is None else max(v, 1e-4) for v in values], color=colour, lw=2, label=label)
        axis.set(yscale="log", ylim=(0.9e-4, 1.2), xlabel="threshold (log10 of the odds)")
        axis.set_title(task, loc="left", fontweight="bold", color=INK)
        axis.grid(color="#e4e7eb")
    panels[0].set_ylabel("share (0 drawn at 0.01%)")
    panels[0].legend(frameon=False)
    figure.savefig(target, dpi=130, format="png")


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * 2 + ["---:"] * (len(headings) - 2), *rows]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.2f}% [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
