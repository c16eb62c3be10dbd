"""The end of a robot's run: how often each task succeeded after imitation, offline and online learning."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from align.checkpoint import write_atomically
from align.tracking.curves import BLUE, CURVES_FILE, GREEN, INK, ORANGE, PURPLE, STYLE, draw_lines, save_figure
from align.tracking.jsonl import METRICS_FILE, read_metrics
from align.tracking.logs import LOG_FILE
from align.tracking.report import SUMMARY_JSON, SUMMARY_TEXT
from align.tracking.text import number
from rewards.intervals import wilson

FILES = {
    CURVES_FILE: "curves of the run",
    SUMMARY_TEXT: "this summary (summary.json for programs)",
    METRICS_FILE: "every number, one JSON object a step",
    "films": "attempts, as filmstrips and videos",
    "reward": "the success model, with its report on held-out attempts",
    "prior": "the prior data",
    "recipe.yaml": "the recipe as it was resolved",
    "policy": "the trained policy",
    "policy_best": "the best iterate",
    "checkpoints": "what the run continues from",
    f"logs/{LOG_FILE}": "logs of the libraries",
    "wandb": "W&B run, for `wandb sync`",
}

COLOURS = (BLUE, GREEN, ORANGE, PURPLE)
PANELS = (
    ("Success, evaluated", (("eval/chain_success", "in a chain"), ("eval/success", "from hard resets"))),
    (
        "Success while practising",
        (("collect/train_success", "in truth"), ("collect/detected_success", "by the detector")),
    ),
    ("Hard resets asked for, in 100 attempts", (("collect/interventions_per_100_episodes", "so far"),)),
    (
        "Value of a state (decisions left, negative)",
        (
            ("train/q_data", "Q of the data"),
            ("train/q_policy", "Q of the policy"),
            ("train/mc_return", "Monte-Carlo return"),
        ),
    ),
    (
        "Losses",
        (
            ("train/td_loss", "temporal difference"),
            ("train/conservative_loss", "conservative"),
            ("train/bc_loss", "imitation"),
        ),
    ),
    (
        "Length of an attempt (decisions)",
        (("collect/episode_length", "practising"), ("eval/episode_length", "evaluated")),
    ),
)

Counts = Mapping[str, tuple[int, int]]
"""Successes and attempts of each kind of evaluation: a task's name, or ``chain``."""


@dataclass(frozen=True, slots=True)
class RobotOutcome:
    """What a finished run has to say.

    ``phases`` maps a phase (``imitation``, ``offline``, ``online``, ``best``) to the step of its evaluation and what
    was counted there; missing where nothing was evaluated. ``minutes`` of wall time, evaluation included.
    ``interventions`` is how many hard resets the robot asked for in its online ``attempts``.
    """

    recipe: str
    folder: Path
    steps: int
    minutes: float
    phases: Mapping[str, tuple[int, Counts]]
    attempts: int
    interventions: int
    decisions: int
    next_steps: Mapping[str, str] = field(default_factory=dict)


def summarise(outcome: RobotOutcome, console: Console) -> dict[str, Any]:
    """Writes ``summary.json`` and ``summary.md`` into the run folder, shows the latter, and returns the former."""
    facts = _facts(outcome)
    write_atomically(outcome.folder / SUMMARY_JSON, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    # Twice, so that the list of files in it holds the summary itself.
    for _ in range(2):
        write_atomically(outcome.folder / SUMMARY_TEXT, _text(outcome, facts))
    console.print(_text(outcome, facts), markup=False, soft_wrap=True, end="")
    return facts


def _facts(outcome: RobotOutcome) -> dict[str, Any]:
    return {
        "recipe": outcome.recipe,
        "folder": str(outcome.folder),
        "steps": outcome.steps,
        "minutes": round(outcome.minutes, 3),
        "attempts": outcome.attempts,
        "decisions": outcome.decisions,
        "interventions": outcome.interventions,
        "interventions_per_100_attempts": 100 * outcome.interventions / outcome.attempts if outcome.attempts else None,
        "phases": {
            phase: {
                "step": step,
                "success": {
                    kind: {"successes": done, "attempts": tried, "interval_95": list(wilson(done, tried))}
                    for kind, (done, tried) in counts.items()
                },
            }
            for phase, (step, counts) in outcome.phases.items()
        },
    }


def _text(outcome: RobotOutcome, facts: Mapping[str, Any]) -> str:
    lines = [f"# {outcome.recipe}: {outcome.steps} steps in {number(outcome.minutes)} minutes", ""]
    if outcome.phases:
        lines += [*_table(outcome.phases), ""]
    else:
        lines += ["Success was not measured (schedule.evaluate_every is 0).", ""]
    if outcome.attempts:
        rate = facts["interventions_per_100_attempts"]
        lines += [
            f"Online: {outcome.attempts} attempts, {outcome.decisions} decisions, {outcome.interventions} hard resets "
            f"asked for ({rate:.1f} in 100 attempts).",
            "",
        ]
    files = [f"- `{name}`: {text}" for name, text in FILES.items() if (outcome.folder / name).exists()]
    lines += [f"Files in `{outcome.folder}`:", "", *files, ""]
    if outcome.next_steps:
        lines += ["Next:", "", *(f"- {label}: `{command}`" for label, command in outcome.next_steps.items()), ""]
    return "\n".join(lines)


def _table(phases: Mapping[str, tuple[int, Counts]]) -> Sequence[str]:
    kinds = list(dict.fromkeys(kind for _, counts in phases.values() for kind in counts))
    lines = [f"| after | step | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    for phase, (step, counts) in phases.items():
        cells = [_share(*counts[kind]) if kind in counts else "" for kind in kinds]
        lines.append(f"| {phase} | {step} | {' | '.join(cells)} |")
    lines += ["", "Shares of attempts that succeeded, by the simulator's truth, with 95% intervals (Wilson's)."]
    if "best" in phases:
        lines.append("The best iterate was chosen by these very attempts: an honest number needs others.")
    return lines


def _share(done: int, tried: int) -> str:
    low, high = wilson(done, tried)
    return f"{done / tried:.2f} [{low:.2f}, {high:.2f}] of {tried}"


def plot_robot(folder: Path, title: str) -> Path:
    """Draws success, detection, interventions, values and losses over the steps; returns ``curves.png``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    history = list(read_metrics(folder / METRICS_FILE))
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3).ravel()
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
        for axis, (heading, names) in zip(axes, PANELS, strict=True):
            lines = [(name, label, colour) for (name, label), colour in zip(names, COLOURS, strict=False)]
            draw_lines(axis, history, heading, lines)
            axis.set_xlabel("step")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes[:2]:
            axis.set_ylim(0, 1.05)
        target = folder / CURVES_FILE
        save_figure(figure, target)
    return target
