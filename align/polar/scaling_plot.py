"""``scaling.png``: validation loss against parameters and against compute, with our laws and the paper's."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.polar.hyperparameters import loss_of_compute, loss_of_parameters
from align.polar.power_law import PowerLaw, frontier
from align.tracking.curves import BLUE, INK, ORANGE, PHASE_COLOURS, STYLE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from align.polar.scaling import Scaling

GREY = "#9aa5b1"
CHANCE = math.log(2)


def plot_scaling(scaling: "Scaling", path: Path) -> Path:
    """Draws two panels to ``path``, whole or absent: final loss by size, and loss during training by FLOPs."""
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _sizes(left, scaling)
        _compute(right, scaling)
        right.set_xscale("log")
        for axis in (left, right):
            axis.set_ylabel("validation loss (nats)")
            axis.axhline(CHANCE, color=GREY, linewidth=1, linestyle=(0, (2, 3)))
            axis.annotate(
                "chance, ln 2", (0.01, CHANCE), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", color="#52606d", fontsize=8.5,
            )  # fmt: skip
            axis.margins(x=0.12)
        left.legend(loc="best", fontsize=8.5)
        # Losses fall from the upper left to the lower right.
        right.legend(loc="lower left", fontsize=8.5)
        save_figure(figure, path)
    return path


def _sizes(axis: "Axes", scaling: "Scaling") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_title("Final validation loss by model size")
    axis.set_xlabel("parameters")
    axis.set_xscale("log")
    # Sizes within a power of ten: the usual labels would be one, or run into each other.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    losses = [size.loss for size in scaling.sizes]
    total = [float(size.parameters) for size in scaling.sizes]
    body = [float(size.non_embedding_parameters) for size in scaling.sizes]
    _points(axis, total, losses, BLUE, "all", scaling.by_parameters, "N")
    _points(axis, body, losses, ORANGE, "non-embedding", scaling.by_non_embedding, "N")
    _paper(axis, [*total, *body], loss_of_parameters, r"paper: $0.9\,N^{-0.0425}$")
    for size, x in zip(scaling.sizes, total, strict=True):
        axis.annotate(
            f"{size.layers}", (x, size.loss), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5,
            color=INK,
        )  # fmt: skip


def _compute(axis: "Axes", scaling: "Scaling") -> None:
    axis.set_title("Validation loss by training compute")
    axis.set_xlabel("FLOPs")
    for index, size in enumerate(scaling.sizes):
        colour = PHASE_COLOURS[index % len(PHASE_COLOURS)]
        axis.plot(
            [flops for flops, _ in size.curve], [loss for _, loss in size.curve], color=colour, linewidth=1.4,
            marker="o", markersize=3.5, alpha=0.85, label=f"{size.layers} layers",
        )  # fmt: skip
    best = frontier([point for size in scaling.sizes for point in size.curve])
    if scaling.by_compute:
        budgets = [flops for flops, _ in best]
        axis.plot(
            _spread(budgets), [scaling.by_compute(x) for x in _spread(budgets)], color=INK, linewidth=1.4,
            label="best: " + formula(scaling.by_compute, "C"),
        )  # fmt: skip
    _paper(
        axis,
        [flops for size in scaling.sizes for flops, _ in size.curve],
        loss_of_compute,
        r"paper: $2.4\,C^{-0.0342}$",
    )


def _points(
    axis: "Axes", x: list[float], y: list[float], colour: str, name: str, law: PowerLaw | None, letter: str
) -> None:
    label = f"{name}: {formula(law, letter)}" if law else name
    axis.plot(x, y, color=colour, marker="o", markersize=5, linestyle="", label=label)
    if law:
        axis.plot(_spread(x), [law(value) for value in _spread(x)], color=colour, linewidth=1.4)


def _paper(axis: "Axes", x: Sequence[float], law: Callable[[float], float], label: str) -> None:
    values: Any = _spread(x)
    axis.plot(values, [law(value) for value in values], color=GREY, linewidth=1.4, linestyle="--", label=label)


def _spread(x: Sequence[float]) -> list[float]:
    """Where a line is drawn: the ends of ``x`` and points between, evenly on a logarithmic axis."""
    low, high = math.log(min(x)), math.log(max(x))
    return [math.exp(low + (high - low) * step / 40) for step in range(41)]


def formula(law: PowerLaw, letter: str) -> str:
    """A law in a legend."""
    return rf"${law.coefficient:.3g}\,{letter}^{{{law.exponent:.3f}}}$, $r$ = {law.r:.3f}"
