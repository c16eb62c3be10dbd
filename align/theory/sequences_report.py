"""What the small language models showed: a table and a picture."""

from pathlib import Path

import numpy as np
from rich.table import Table

from align.theory.report import mean_interval
from align.theory.sequences import ARMS, SequencesResult
from align.tracking.curves import STYLE

LOOKS = {
    "online_dpo": ("online DPO", "#e69f00", "-"),
    "xpo": ("XPO", "#0072b2", "-"),
    "wrong_sign": ("XPO with the wrong sign", "#d55e00", ":"),
}


def sequences_table(result: SequencesResult) -> Table:
    """One line for each arm; suboptimality is that of the KL-regularised objective, computed by enumeration."""
    config = result.config
    table = Table(
        title=f"A language model of {config.vocabulary} tokens and completions of at most {config.length}: "
        f"{config.rounds} rounds, {len(config.seeds)} seeds, beta {config.beta:g}",
        caption=f"Stuck: every iterate at least {config.gap:g} suboptimal in J_beta. Brackets: 95% intervals.",
    )
    table.add_column("arm")
    for heading in ("stuck", "last iterate", "best iterate", "good completions at the end"):
        table.add_column(heading, justify="right")
    for k, arm in enumerate(ARMS):
        curve, good = result.suboptimality[k], result.good_probability[k]
        cells = []
        for values in (curve[:, -1], curve.min(axis=1), good[:, -1]):
            mean, low, high = mean_interval(values)
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        table.add_row(arm, f"{int(result.stuck[k].sum())} of {len(config.seeds)}", *cells)
    return table


def plot_sequences(result: SequencesResult, path: Path) -> Path:
    """Draws suboptimality and the chance of good completions against rounds, every seed thinly; returns ``path``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = result.config
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        values, chances = figure.subplots(1, 2)
        rounds = np.arange(result.suboptimality.shape[2])
        for axis, data, title in (
            (values, result.suboptimality, "Suboptimality in J_beta, exact"),
            (chances, result.good_probability, "Probability of a good completion"),
        ):
            for k, arm in enumerate(ARMS):
                label, colour, line = LOOKS[arm]
                axis.plot(rounds, data[k].T, color=colour, linestyle=line, linewidth=0.6, alpha=0.45)
                axis.plot(rounds, data[k].mean(axis=0), color=colour, linestyle=line, linewidth=2.4, label=label)
            axis.set_title(title)
            axis.set_xlabel("round (0: the reference policy)")
            axis.set_ylim(bottom=0)
        values.axhline(config.gap, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
        chances.legend()
        figure.suptitle(
            f"Trained by gradient through the real learner and loop, {len(config.seeds)} seeds (thin) and their mean",
            x=0.012, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=130)
    return path
