"""What the bandit and the sequences showed: tables, pictures, and the numbers for a tracker."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from align.theory.bandit import BanditResult
from align.theory.sequences import ARMS, SequencesResult
from align.theory.two_arms import Floats
from align.tracking.curves import INK, STYLE
from rewards.intervals import Z95, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def student95(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t, by its expansion around the normal one; within 0.3% from 4 on."""
    z = Z95
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def mean_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean over the last axis (independent runs) and its two-sided 95% t interval, cut at zero."""
    mean, runs = values.mean(axis=-1), values.shape[-1]
    half = student95(runs - 1) * values.std(axis=-1, ddof=1) / np.sqrt(runs)
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
            arm.name, f"{arm.alpha:.2g}", _share(result.stuck[k]), f"{last:.3f}", *(_with_interval(m) for m in means)
        )  # fmt: skip
    return table


def sequences_table(result: SequencesResult) -> Table:
    """One line for each arm of the sequences; suboptimality is that of the KL-regularised objective."""
    config = result.config
    table = Table(
        title=f"{config.rounds} rounds of {config.pairs} pairs, {len(config.seeds)} seeds, beta {config.beta:g}, "
        f"alpha {config.alpha:g}",
        caption=f"By gradient. Stuck: every iterate at least {config.gap:g} suboptimal in J_beta. Brackets: 95% "
        "intervals over seeds.",
    )
    table.add_column("arm")
    for heading in ("stuck", "last iterate", "best iterate", "pi(good), last, mean"):
        table.add_column(heading, justify="right")
    for k, arm in enumerate(ARMS):
        curves, good = result.suboptimality[k], result.good_probability[k, :, -1]
        best: Floats = curves.min(axis=1)
        cells = (_share(result.stuck[k]), _with_interval(curves[:, -1]), _with_interval(best), f"{good.mean():.3f}")
        table.add_row(arm, *cells)
    return table


def bandit_metrics(result: BanditResult) -> Iterator[tuple[int, dict[str, float]]]:
    """``(round, numbers)`` for a tracker; round 0 is the reference policy, the share of stuck runs comes last."""
    names = [arm.name for arm in result.arms]
    yield from _metrics("bandit", names, result.suboptimality, result.stuck)


def sequences_metrics(result: SequencesResult) -> Iterator[tuple[int, dict[str, float]]]:
    """:func:`bandit_metrics` of the sequences."""
    yield from _metrics("sequences", ARMS, result.suboptimality.swapaxes(1, 2), result.stuck)


def _metrics(
    family: str, arms: Sequence[str], suboptimality: Floats, stuck: NDArray[np.bool_]
) -> Iterator[tuple[int, dict[str, float]]]:
    """From [arms, rounds + 1, runs]."""
    mean, low, high = mean_interval(suboptimality)
    for t in range(mean.shape[1]):
        numbers: dict[str, float] = {}
        for k, arm in enumerate(arms):
            stem = f"{family}/{arm}/"
            numbers |= {
                stem + "suboptimality": float(mean[k, t]),
                stem + "suboptimality_low": float(low[k, t]),
                stem + "suboptimality_high": float(high[k, t]),
            }
            if t == mean.shape[1] - 1:
                numbers[stem + "stuck"] = float(stuck[k].mean())
        yield t, numbers


def plot_bandit(result: BanditResult, path: Path) -> Path:
    """Draws suboptimality against rounds, the sweep over alpha, and the share of stuck runs; returns ``path``."""
    config = result.config
    with _figure((13.5, 9)) as figure:
        figure.suptitle(
            f"Proposition 2.1's bandit: {config.rounds} rounds, {config.runs} runs, beta = {config.beta:g}, "
            f"pi_ref(a) = {np.exp(config.problem.log_ref_a):.2g}",
            x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK,
        )  # fmt: skip
        (algorithms, sweep), (shares, means) = figure.subplots(2, 2)
        sweep.sharey(algorithms)
        rounds = np.arange(1, config.rounds + 2)
        algorithms.set_title("Suboptimality in J_beta: mean and 95% interval over runs")
        for name in DRAWN:
            label, colour, line = LOOKS[name]
            _curve(algorithms, rounds, result.suboptimality[result.index(name)], label, colour, line)
        sweep.set_title("The same for XPO at several alpha")
        for position, k in enumerate(_by_alpha(result)):
            colour = LOOKS["xpo"][1] if result.arms[k].name == "xpo" else SWEEP_COLOURS[position % len(SWEEP_COLOURS)]
            _curve(sweep, rounds, result.suboptimality[k], f"alpha = {result.arms[k].alpha:.1e}", colour, "-")
        for axis in (algorithms, sweep):
            axis.set_xscale("log")
            _finish(axis, config.gap, config.rounds + 1)
        wilsons = [wilson(count, config.runs) for count in result.stuck.sum(axis=1).tolist()]
        stuck = result.stuck.mean(axis=1)
        shares.set_title(f"Stuck runs: every iterate at least {config.gap:g} suboptimal")
        _bars(shares, result, stuck, np.array(wilsons).T, "{:.1%}")
        means.set_title("Suboptimality, mean over all iterates and runs")
        mean, low, high = mean_interval(result.suboptimality.mean(axis=1))
        _bars(means, result, mean, np.stack([low, high]), "{:.3f}")
        means.set_yticklabels([])
        figure.savefig(path, dpi=130)
    return path


def plot_sequences(result: SequencesResult, path: Path) -> Path:
    """Draws suboptimality and the probability of a good completion, every run and their mean; returns ``path``."""
    config = result.config
    rounds = np.arange(1, config.rounds + 2)
    with _figure((13.5, 5.2)) as figure:
        figure.suptitle(
            f"A tiny language model, by gradient: {config.rounds} rounds of {config.pairs} pairs, {len(config.seeds)} "
            f"seeds, beta = {config.beta:g}, alpha = {config.alpha:g}",
            x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK,
        )  # fmt: skip
        regret, good = figure.subplots(1, 2)
        regret.set_title("Suboptimality in J_beta: each run, mean, 95% interval")
        good.set_title("Probability of a good completion: each run")
        for k, arm in enumerate(ARMS):
            label, colour, line = LOOKS[arm]
            _curve(regret, rounds, result.suboptimality[k].T, label, colour, line)
            regret.plot(rounds, result.suboptimality[k].T, color=colour, alpha=0.3, linewidth=0.8)
            runs = good.plot(rounds, result.good_probability[k].T, color=colour, linestyle=line, linewidth=1.1)
            runs[0].set_label(label)
        good.set_yscale("log")
        good.set_ylim(bottom=config.rare / 30)
        good.axhline(config.rare, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
        _finish(regret, config.gap, config.rounds + 1)
        good.set_xlim(1, config.rounds + 1)
        good.set_xlabel("iterate (the first is the reference policy)")
        figure.savefig(path, dpi=130)
    return path


@contextmanager
def _figure(size: tuple[float, float]) -> "Iterator[Figure]":
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def _by_alpha(result: BanditResult) -> list[int]:
    ours = [k for k, arm in enumerate(result.arms) if arm.name == "xpo" or arm.name.startswith("xpo_alpha_x")]
    return sorted(ours, key=lambda k: result.arms[k].alpha)


def _curve(axis: "Axes", rounds: NDArray[np.int_], values: Floats, label: str, colour: str, line: str) -> None:
    """Mean and interval of [rounds, runs]."""
    mean, low, high = mean_interval(values)
    axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(rounds, mean, color=colour, linestyle=line, label=label)


def _finish(axis: "Axes", gap: float, last: int) -> None:
    axis.axhline(gap, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xlim(1, last)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("iterate (the first is the reference policy)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=9)


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


def _share(which: NDArray[np.bool_]) -> str:
    count, runs = int(which.sum()), len(which)
    low, high = wilson(count, runs)
    return f"{count / runs:.3f} [{low:.3f}, {high:.3f}]"


def _with_interval(values: Floats) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"
