"""``reward_vs_accuracy.png``: does what the policy is rewarded for still mean that it does what was asked?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.tracking.curves import BLUE, GREEN, ORANGE, STYLE, History, save_figure, series, smooth
from align.tracking.jsonl import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WATCH_FILE = "reward_vs_accuracy.png"


def plot_watch(folder: Path, title: str = "") -> Path | None:
    """Draws reward and verified accuracy by step, one against the other, and how well the one ranks the other.

    Where they part company (reward up, accuracy down) the policy exploits the reward (arXiv 2210.10760). None where
    the run has no check beside its reward.
    """
    history = list(read_metrics(folder / METRICS_FILE))
    if not watched(history):
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        figure = Figure(figsize=(12, 3.7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        by_step, against, rank = figure.subplots(1, 3)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        _by_step(by_step, history)
        _against(against, history)
        _ranking(rank, history)
        target = folder / WATCH_FILE
        save_figure(figure, target)
    return target


def watched(history: History) -> bool:
    """Whether a check stood beside the reward."""
    return any("reward/verified_mean" in row or "eval/reward_mean" in row for _, row in history)


def reward_name(history: History) -> str:
    """The raw reward where it was normalised, else the reward itself."""
    return "reward/raw_mean" if any("reward/raw_mean" in row for _, row in history) else "reward/mean"


def _by_step(axis: "Axes", history: History) -> None:
    axis.set_title("Reward and accuracy by step")
    axis.set_xlabel("step")
    steps, rewards = series(history, reward_name(history))
    axis.plot(steps, smooth(rewards), color=GREEN, label="raw reward of samples")
    held, values = series(history, "eval/reward_mean")
    axis.plot(held, values, color=GREEN, linestyle="none", marker="s", markersize=5, label="… held out")
    axis.set_ylabel("raw reward", color=GREEN)
    other = axis.twinx()
    other.grid(visible=False)
    steps, right = series(history, "reward/verified_mean")
    other.plot(steps, smooth(right), color=BLUE, label="right, of samples")
    held, values = series(history, "eval/accuracy")
    other.plot(held, values, color=BLUE, linestyle="none", marker="o", markersize=5, label="… held out")
    other.set_ylabel("accuracy by the verifier", color=BLUE)
    other.set_ylim(bottom=0)
    axis.legend(*_both(axis, other), loc="lower right", fontsize=8)


def _both(first: "Axes", second: "Axes") -> tuple[list[Any], list[Any]]:
    handles, labels = first.get_legend_handles_labels()
    more, names = second.get_legend_handles_labels()
    return handles + more, labels + names


def _against(axis: "Axes", history: History) -> None:
    axis.set_title("Accuracy against reward")
    axis.set_xlabel("raw reward, mean")
    axis.set_ylabel("accuracy by the verifier")
    name = reward_name(history)
    points = [
        (step, row[name], row["reward/verified_mean"])
        for step, row in history
        if name in row and "reward/verified_mean" in row
    ]
    if points:
        steps, rewards, right = zip(*points, strict=True)
        drawn = axis.scatter(rewards, right, c=steps, cmap="viridis", s=22, label="samples of a step")
        axis.figure.colorbar(drawn, ax=axis, label="step")
    held = [
        (row["eval/reward_mean"], row["eval/accuracy"])
        for _, row in history
        if "eval/reward_mean" in row and "eval/accuracy" in row
    ]
    if held:
        axis.plot(*zip(*held, strict=True), color=ORANGE, marker="o", markersize=5, linewidth=1, label="held out")
    axis.legend(loc="best", fontsize=8)


def _ranking(axis: "Axes", history: History) -> None:
    axis.set_title("The reward ranks right first")
    axis.set_xlabel("step")
    axis.set_ylabel("share of pairs of one prompt")
    steps, values = series(history, "reward/verified_auc")
    axis.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
    axis.plot(steps, smooth(values), color=BLUE)
    axis.axhline(0.5, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(0, 1.02)
