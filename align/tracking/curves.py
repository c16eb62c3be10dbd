"""``curves.png``: how a run went, drawn from its ``metrics.jsonl``."""

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.tracking.jsonl import METRICS_FILE, read_metrics
from align.tracking.text import phases

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_FILE = "curves.png"
INK, GRID = "#1f2933", "#e4e7eb"
BLUE, GREEN, ORANGE, PURPLE = "#2f6fdb", "#1a936f", "#e07a1f", "#7b52ab"
# Okabe and Ito's colours can be told apart with any colour vision; grey is for what no phase claims.
PHASE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
OTHER = "#b8c0c8"
STYLE: Any = {
    "axes.edgecolor": "#9aa5b1", "axes.labelcolor": INK, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.titlesize": 11, "axes.titlecolor": INK, "grid.color": GRID, "font.size": 9.5, "legend.frameon": False,
    "lines.linewidth": 2.0, "text.color": INK, "xtick.color": "#52606d", "ytick.color": "#52606d",
}  # fmt: skip

Series = tuple[list[int], list[float]]
History = list[tuple[int, dict[str, float]]]


def plot(metrics: Path, title: str = "") -> Path:
    """Draws held-out accuracy with its interval, reward, KL, loss, gradient norm and the time of a step by phase.

    Returns ``curves.png`` beside ``metrics``. Raises ``UserError`` when there is nothing to draw.
    """
    history = list(read_metrics(metrics)) if metrics.exists() else []
    if not history:
        raise UserError(f"{metrics}: no finished step to draw yet")
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(12, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3).ravel()
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
        _accuracy(axes[0], history)
        draw_lines(axes[1], history, "Reward of the policy's samples", [("reward/mean", "mean", GREEN)])
        draw_lines(axes[2], history, "KL to the reference (nats)", [("objective/kl", "KL", PURPLE)])
        draw_lines(
            axes[3], history, "Loss (nats)",
            [("loss/total", "total", BLUE), ("loss/preference", "preference", ORANGE)],
        )  # fmt: skip
        draw_lines(
            axes[4], history, "Implicit reward (nats)",
            [("rewards/chosen", "chosen", GREEN), ("rewards/rejected", "rejected", ORANGE)],
        )  # fmt: skip
        _timing(axes[5], history)
        for axis in axes:
            axis.set_xlabel("step")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlim(left=min(0, history[0][0]) - 0.5, right=max(1, history[-1][0]) + 0.5)
        target = metrics.with_name(CURVES_FILE)
        save_figure(figure, target)
    return target


def save_figure(figure: Any, target: Path) -> None:
    """Atomically: a viewer that reloads the picture never sees half of it."""
    descriptor, half = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".png")
    os.close(descriptor)
    try:
        figure.savefig(half, dpi=130)
        # mkstemp makes files that only their owner reads.
        os.chmod(half, 0o644)
        os.replace(half, target)
    finally:
        Path(half).unlink(missing_ok=True)


def series(history: History, name: str) -> Series:
    """Steps and values of one metric, where it was measured and is finite."""
    points = [(step, row[name]) for step, row in history if name in row and _drawable(row[name])]
    return [step for step, _ in points], [value for _, value in points]


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def draw_lines(axis: "Axes", history: History, title: str, lines: list[tuple[str, str, str]]) -> None:
    """One panel of lines; the raw values faint and their running mean strong, where there are enough to smooth."""
    axis.set_title(title)
    drawn = 0
    for name, label, colour in lines:
        steps, values = series(history, name)
        if not steps:
            continue
        drawn += 1
        if len(values) >= 12:
            axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axis.plot(steps, smooth(values), color=colour, label=label)
        else:
            axis.plot(steps, values, color=colour, marker="o", markersize=3.5, label=label)
    if drawn > 1:
        axis.legend(loc="best")
    if not drawn:
        _empty(axis)


def smooth(values: list[float], span: int = 5) -> list[float]:
    """The mean over up to ``span`` values centred on each; at the ends over those there are, symmetrically."""
    half = span // 2
    result = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        window = values[index - reach : index + reach + 1]
        result.append(sum(window) / len(window))
    return result


def _accuracy(axis: "Axes", history: History) -> None:
    axis.set_title("Held-out accuracy, 95% interval")
    steps, values = series(history, "eval/accuracy")
    if not steps:
        _empty(axis)
        return
    rows = [row for _, row in history if _drawable(row.get("eval/accuracy"))]
    low = [row.get("eval/accuracy_low", row["eval/accuracy"]) for row in rows]
    high = [row.get("eval/accuracy_high", row["eval/accuracy"]) for row in rows]
    axis.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(steps, values, color=BLUE, marker="o", markersize=5)
    axis.axhline(values[0], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(0, min(1.0, max(high) * 1.15 + 0.02))
    for index in sorted({0, len(values) - 1}):
        axis.annotate(
            f"{values[index]:.3f}", (steps[index], values[index]), xytext=(7, -13) if index == 0 else (0, 8),
            textcoords="offset points", ha="left" if index == 0 else "right", fontweight="bold", color=BLUE,
        )  # fmt: skip


def _timing(axis: "Axes", history: History) -> None:
    axis.set_title("Time of a step by phase (s)")
    timed = [(step, phases(row)) for step, row in history if phases(row)]
    if not timed:
        _empty(axis)
        return
    totals: dict[str, float] = {}
    for _, row in timed:
        for name, seconds in row.items():
            totals[name] = totals.get(name, 0.0) + seconds
    # The phase that took most of the run at the bottom, what nobody claims on top.
    names = sorted(totals, key=lambda name: (name == "other", -totals[name]))
    bottom = [0.0] * len(timed)
    steps = [step for step, _ in timed]
    for index, name in enumerate(names):
        colour = OTHER if name == "other" else PHASE_COLOURS[index % len(PHASE_COLOURS)]
        heights = [row.get(name, 0.0) for _, row in timed]
        axis.bar(steps, heights, bottom=bottom, width=0.85, color=colour, label=name, linewidth=0)
        bottom = [base + height for base, height in zip(bottom, heights, strict=True)]
    axis.set_ylim(0, max(bottom) * 1.3)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper left", ncols=3, fontsize=8.5, handlelength=1, columnspacing=1.2, reverse=False)


def _empty(axis: "Axes") -> None:
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color="#9aa5b1")
    axis.set_yticks([])


def plot_run(folder: Path, title: str = "") -> Path:
    """:func:`plot` of a run folder."""
    return plot(folder / METRICS_FILE, title)
