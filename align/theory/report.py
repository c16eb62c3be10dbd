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
    "online_dpo_onpolicy": ("online DPO, both samples from the policy", "#b8860b", "--"),
    "xpo": ("XPO", "#0072b2", "-"),
    "xpo_onpolicy": ("XPO, both samples from the policy", "#56b4e9", "--"),
    "xpo_identical_dropped": ("XPO without identical pairs", "#cc79a7", "-."),
    "wrong_sign": ("XPO with the wrong sign", "#d55e00", ":"),
}
SWEEP_COLOURS = ("#009e73", "#52606d", "#7b52ab", "#9aa5b1")


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
        figure = Figure(figsize=(14, 5.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(
            f"Proposition 2.1's bandit: {config.rounds} rounds, {config.runs} runs, beta = {config.beta:g}",
            x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK,
        )  # fmt: skip
        algorithms, sweep, shares = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        sweep.sharey(algorithms)
        _curves(algorithms, result, list(LOOKS), "Suboptimality in J_beta, mean and 95% interval")
        _curves(sweep, result, _by_alpha(result), "XPO at several alpha")
        _stuck(shares, result)
        figure.savefig(path, dpi=130)
    return path


def _by_alpha(result: BanditResult) -> list[str]:
    ours = [arm for arm in result.arms if arm.name == "xpo" or arm.name.startswith("xpo_alpha_x")]
    return [arm.name for arm in sorted(ours, key=lambda arm: arm.alpha)]


def _curves(axis: "Axes", result: BanditResult, names: list[str], title: str) -> None:
    axis.set_title(title)
    rounds = np.arange(1, result.config.rounds + 2)
    for position, name in enumerate(names):
        arm = result.arms[result.index(name)]
        label, colour, line = LOOKS.get(name, ("", SWEEP_COLOURS[position % len(SWEEP_COLOURS)], "-"))
        if title.startswith("XPO"):
            label = f"alpha = {arm.alpha:.1e}"
        mean, low, high = mean_interval(result.suboptimality[result.index(name)])
        axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(rounds, mean, color=colour, linestyle=line, label=label)
    axis.axhline(result.config.gap, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xscale("log")
    axis.set_xlim(1, result.config.rounds + 1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("iterate (the first is the reference policy)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8.5, handlelength=2.4)


def _stuck(axis: "Axes", result: BanditResult) -> None:
    axis.set_title(f"Runs with every iterate at least {result.config.gap:g} suboptimal")
    counts = result.stuck.sum(axis=1)
    runs = result.config.runs
    names = [LOOKS[arm.name][0] if arm.name in LOOKS else f"XPO, alpha = {arm.alpha:.1e}" for arm in result.arms]
    rows = np.arange(len(names))
    ends = [wilson(count, runs) for count in counts.tolist()]
    share = counts / runs
    errors = [
        [s - low for s, (low, _) in zip(share, ends, strict=True)],
        [high - s for s, (_, high) in zip(share, ends, strict=True)],
    ]
    fallback = "#0072b2"
    colours = [LOOKS[arm.name][1] if arm.name in LOOKS else fallback for arm in result.arms]
    axis.barh(rows, share, color=colours, height=0.62, xerr=np.maximum(errors, 0), ecolor=INK)
    for row, (s, (_, high)) in enumerate(zip(share, ends, strict=True)):
        axis.text(high + 0.02, row, f"{s:.1%}", va="center", fontsize=9)
    axis.set_yticks(rows, names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.18)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25%", "50%", "75%", "100%"])
    axis.grid(axis="y", visible=False)


def _share(result: BanditResult, k: int) -> str:
    count, runs = int(result.stuck[k].sum()), result.config.runs
    low, high = wilson(count, runs)
    return f"{count / runs:.3f} [{low:.3f}, {high:.3f}]"


def _with_interval(values: Floats) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"
