"""What the bandit showed: a table, a picture, and the numbers for a tracker."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from align.theory.bandit import BanditResult
from align.theory.two_arms import Floats
from align.tracking.curves import INK, STYLE
from align.tracking.intervals import Z95, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours can be told apart with any colour vision.
LOOKS: Mapping[str, tuple[str, str, str]] = {
    "online_dpo": ("online DPO", "#e69f00", "-"),
    "online_dpo_onpolicy": ("online DPO, on-policy pairs", "#8a6d1f", "--"),
    "xpo": ("XPO", "#0072b2", "-"),
    "xpo_onpolicy": ("XPO, on-policy pairs", "#56b4e9", "-"),
    "xpo_identical_dropped": ("XPO without identical pairs", "#cc79a7", "-."),
    "wrong_sign": ("XPO with the wrong sign", "#d55e00", ":"),
}
# The exact minimiser with on-policy pairs swings from one end of the class to the other in every round: no curve.
DRAWN = ("online_dpo", "online_dpo_onpolicy", "xpo", "xpo_identical_dropped", "wrong_sign")
SWEEP_COLOURS = ("#9aa5b1", "#52606d", "#009e73", "#7b52ab", "#111827")


def mean_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean over the last axis (independent runs) and its two-sided 95% normal interval, never below zero."""
    mean = values.mean(axis=-1)
    half = Z95 * values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
    return mean, np.maximum(0.0, mean - half), mean + half


def bandit_table(result: BanditResult) -> Table:
    """One line for each arm; suboptimality is that of the KL-regularised objective, mean over runs."""
    config = result.config
    inside = "inside" if config.rounds <= config.horizon else "OUTSIDE"
    table = Table(
        title=f"{config.rounds} rounds, {config.runs} runs, beta {config.beta:g}, pi_ref(a) = exp(-{config.c:g}/beta)",
        caption=f"{config.rounds} rounds are {inside} the {config.horizon:.0f} of Proposition 2.1. Stuck: every "
        f"iterate at least {config.gap:g} suboptimal in J_beta. Brackets: 95% intervals over runs.",
    )
    table.add_column("arm")
    for heading in ("alpha", "stuck", "last stuck", "last iterate", "best iterate", "mean of iterates"):
        table.add_column(heading, justify="right")
    for k, arm in enumerate(result.arms):
        curves = result.suboptimality[k]
        last = (curves[-1] >= config.gap).mean()
        means = (curves[-1], curves.min(axis=0), curves.mean(axis=0))
        table.add_row(
            arm.name, f"{arm.alpha:.2g}", _share(result, k), f"{last:.3f}", *(_with_interval(m) for m in means)
        )  # fmt: skip
    return table


def bandit_metrics(result: BanditResult) -> Iterator[tuple[int, dict[str, float]]]:
    """``(round, numbers)`` for a tracker: mean suboptimality of the iterates with intervals; shares with the last."""
    mean, low, high = mean_interval(result.suboptimality)
    names = [arm.name for arm in result.arms]
    for t in range(mean.shape[1]):
        numbers: dict[str, float] = {}
        for k, name in enumerate(names):
            stem = f"bandit/{name}"
            numbers |= {
                f"{stem}/suboptimality": float(mean[k, t]),
                f"{stem}/suboptimality_low": float(low[k, t]),
                f"{stem}/suboptimality_high": float(high[k, t]),
            }
            if t == mean.shape[1] - 1:
                numbers[f"{stem}/stuck"] = float(result.stuck[k].mean())
        yield t, numbers


def plot_bandit(result: BanditResult, path: Path) -> Path:
    """Draws suboptimality against rounds, the sweep over alpha, and the share of stuck runs; returns ``path``."""
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    config = result.config
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 8.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(
            f"Proposition 2.1's bandit: {config.rounds} rounds, {config.runs} runs, beta = {config.beta:g}, "
            f"pi_ref(a) = {np.exp(config.problem.log_ref_a):.2g}",
            x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK,
        )  # fmt: skip
        (algorithms, sweep), (shares, means) = figure.subplots(2, 2)
        sweep.sharey(algorithms)
        algorithms.set_title("Suboptimality in J_beta: mean and 95% interval over runs")
        for name in DRAWN:
            label, colour, line = LOOKS[name]
            _curve(algorithms, result, result.index(name), label, colour, line)
        sweep.set_title("The same for XPO at several alpha")
        for position, k in enumerate(_by_alpha(result)):
            colour = LOOKS["xpo"][1] if result.arms[k].name == "xpo" else SWEEP_COLOURS[position % len(SWEEP_COLOURS)]
            _curve(sweep, result, k, f"alpha = {result.arms[k].alpha:.1e}", colour, "-")
        for axis in (algorithms, sweep):
            _finish(axis, result)
        wilsons = [wilson(count, config.runs) for count in result.stuck.sum(axis=1).tolist()]
        stuck = result.stuck.mean(axis=1)
        shares.set_title(f"Stuck: share of runs with every iterate at least {config.gap:g} suboptimal")
        _bars(shares, result, stuck, np.array(wilsons).T, "{:.1%}")
        means.set_title("Suboptimality, mean over all iterates and runs")
        mean, low, high = mean_interval(result.suboptimality.mean(axis=1))
        _bars(means, result, mean, np.stack([low, high]), "{:.3f}")
        means.set_yticklabels([])
        figure.savefig(path, dpi=130)
    return path


def _by_alpha(result: BanditResult) -> list[int]:
    ours = [k for k, arm in enumerate(result.arms) if arm.name == "xpo" or arm.name.startswith("xpo_alpha_x")]
    return sorted(ours, key=lambda k: result.arms[k].alpha)


def _curve(axis: "Axes", result: BanditResult, k: int, label: str, colour: str, line: str) -> None:
    rounds = np.arange(1, result.config.rounds + 2)
    mean, low, high = mean_interval(result.suboptimality[k])
    axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(rounds, mean, color=colour, linestyle=line, label=label)


def _finish(axis: "Axes", result: BanditResult) -> None:
    axis.axhline(result.config.gap, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xscale("log")
    axis.set_xlim(1, result.config.rounds + 1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("iterate (the first is the reference policy)")
    axis.legend(loc="lower left", fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")


def _bars(axis: "Axes", result: BanditResult, values: Floats, interval: Floats, form: str) -> None:
    """A bar for each arm with its interval, [2, K], and its value in figures."""
    rows = np.arange(len(result.arms))
    labels = [LOOKS[arm.name][0] if arm.name in LOOKS else f"XPO, alpha = {arm.alpha:.1e}" for arm in result.arms]
    colours = [LOOKS.get(arm.name, LOOKS["xpo"])[1] for arm in result.arms]
    reach = np.maximum(0.0, np.stack([values - interval[0], interval[1] - values]))
    axis.barh(rows, values, color=colours, height=0.62, xerr=reach, ecolor=INK)
    room = 0.02 * float(interval[1].max())
    for row, (value, high) in enumerate(zip(values.tolist(), interval[1].tolist(), strict=True)):
        axis.text(high + room, row, form.format(value), va="center", fontsize=9)
    axis.set_yticks(rows, labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.16 * float(interval[1].max()))
    axis.grid(axis="y", visible=False)


def _share(result: BanditResult, k: int) -> str:
    count, runs = int(result.stuck[k].sum()), result.config.runs
    low, high = wilson(count, runs)
    return f"{count / runs:.3f} [{low:.3f}, {high:.3f}]"


def _with_interval(values: Floats) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"
