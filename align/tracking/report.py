"""The end of a run: did held-out accuracy rise, by how much, how sure is that, and where everything is."""

import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from align.tracking.curves import CURVES_FILE, plot, plot_run
from align.tracking.intervals import accuracy_difference
from align.tracking.jsonl import METRICS_FILE, SAMPLES_FILE
from align.tracking.logs import LOG_FILE
from align.tracking.text import clean, duration, number
from align.tracking.watch import WATCH_FILE
from rewards.intervals import wilson

__all__ = ["Outcome", "accuracy_difference", "plot", "plot_run", "summary"]

SUMMARY_JSON, SUMMARY_TEXT = "summary.json", "summary.md"
FILES = {
    CURVES_FILE: "curves of the run",
    WATCH_FILE: "reward against verified accuracy",
    SUMMARY_TEXT: "this summary (summary.json for programs)",
    METRICS_FILE: "every number, one JSON object a step",
    SAMPLES_FILE: "completions with their rewards",
    "recipe.yaml": "the recipe as it was resolved",
    "policy": "the trained model",
    "policy_best": "the best iterate by held-out accuracy",
    "intruders.json": "singular vectors that training has added",
    "checkpoints": "what the run continues from",
    f"logs/{LOG_FILE}": "logs of the libraries",
    "wandb": "W&B run, for `wandb sync`",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run has to say.

    ``before`` and ``after`` are the scores of the held-out problems, 0 to 1 each, the same problems in the same order;
    ``None`` where they were not measured. ``minutes`` of wall time, evaluation included. ``next_steps`` are shown as
    they are: what one may want to do now, and the command that does it. ``best`` is the step and the accuracy of the
    best iterate.
    """

    recipe: str
    model: str
    folder: Path
    steps: int
    minutes: float
    before: Sequence[float] | None = None
    after: Sequence[float] | None = None
    next_steps: Mapping[str, str] = field(default_factory=dict)
    best: tuple[int, float] | None = None


def summary(outcome: Outcome, console: Console | None = None) -> dict[str, Any]:
    """Writes ``summary.json`` and ``summary.md`` into the run folder, shows them, and returns the content of the JSON.

    A panel on a terminal, the text of ``summary.md`` elsewhere.
    """
    facts = _facts(outcome)
    _write(outcome.folder / SUMMARY_JSON, json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    # Twice, so that the list of files in it holds the summary itself.
    for _ in range(2):
        _write(outcome.folder / SUMMARY_TEXT, _text(outcome, facts))
    console = console or Console(highlight=False)
    if console.is_terminal:
        console.print(_panel(outcome, facts))
    else:
        console.print(_text(outcome, facts), markup=False, soft_wrap=True, end="")
    return facts


def _facts(outcome: Outcome) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "recipe": outcome.recipe,
        "model": outcome.model,
        "folder": str(outcome.folder),
        "steps": outcome.steps,
        "minutes": round(outcome.minutes, 3),
        "heldout": None,
    }
    if outcome.before is None or outcome.after is None:
        return facts
    before, after = outcome.before, outcome.after
    difference, low, high = accuracy_difference(before, after)
    ends: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": sum(scores) / len(scores),
            "interval_95": list(wilson(min(sum(scores), len(scores)), len(scores))),
        }
        for name, scores in (("before", before), ("after", after))
    }
    start = ends["before"]["accuracy"]
    facts["heldout"] = {
        "problems": len(before),
        **ends,
        "difference": {"accuracy": difference, "interval_95": [low, high], "excludes_zero": low > 0 or high < 0},
        "ratio": ends["after"]["accuracy"] / start if start > 0 else None,
        "best": {"step": outcome.best[0], "accuracy": outcome.best[1]} if outcome.best else None,
    }
    return facts


def _verdict(heldout: dict[str, Any]) -> str:
    difference = heldout["difference"]
    if not difference["excludes_zero"]:
        return "no clear change: the interval of the difference holds zero"
    return "better: the interval excludes zero" if difference["accuracy"] > 0 else "worse: the interval excludes zero"


def _accuracy_rows(heldout: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and 95% interval."""
    rows = [
        (name, f"{heldout[name]['accuracy']:.3f}", "[{:.3f}, {:.3f}]".format(*heldout[name]["interval_95"]))
        for name in ("before", "after")
    ]
    difference = heldout["difference"]
    low, high = difference["interval_95"]
    rows.append(("difference", f"{difference['accuracy']:+.3f}", f"[{low:+.3f}, {high:+.3f}]"))
    ratio = heldout["ratio"]
    rows.append(("ratio", f"{ratio:.2f} x" if ratio is not None else "none (0 before)", ""))
    if best := heldout["best"]:
        # Chosen by the very problems that it is measured on: an honest number needs others.
        rows.append(("best iterate", f"{best['accuracy']:.3f}", f"step {best['step']}; chosen by these problems"))
    return rows


def _files(outcome: Outcome) -> list[tuple[str, str]]:
    return [(name, text) for name, text in FILES.items() if (outcome.folder / name).exists()]


def _next(outcome: Outcome) -> dict[str, str]:
    steps = dict(outcome.next_steps)
    offline = sorted((outcome.folder / "wandb").glob("offline-run-*"))
    if offline:
        steps["upload to W&B"] = f"wandb sync {shlex.quote(str(outcome.folder / 'wandb'))}/offline-run-*"
    return steps


def _text(outcome: Outcome, facts: dict[str, Any]) -> str:
    lines = [
        f"# {outcome.recipe}: {outcome.steps} steps in {number(outcome.minutes)} minutes",
        "",
        f"Model: `{outcome.model}`",
        "",
    ]
    heldout = facts["heldout"]
    if heldout:
        lines += [
            f"Held-out accuracy on {heldout['problems']} problems, {_verdict(heldout)}.",
            "",
            "| | accuracy | 95% interval |",
            "|---|---|---|",
            *(f"| {label} | {value} | {interval} |" for label, value, interval in _accuracy_rows(heldout)),
            "",
        ]
    else:
        lines += ["Held-out accuracy was not measured (schedule.evaluate_every is 0).", ""]
    files = _files(outcome)
    if files:
        lines += [f"Files in `{outcome.folder}`:", "", *(f"- `{name}`: {text}" for name, text in files), ""]
    following = _next(outcome)
    if following:
        lines += ["Next:", "", *(f"- {label}: `{command}`" for label, command in following.items()), ""]
    return "\n".join(lines)


def _panel(outcome: Outcome, facts: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = []
    heldout = facts["heldout"]
    if heldout:
        good = heldout["difference"]["excludes_zero"] and heldout["difference"]["accuracy"] > 0
        style = "bold green" if good else "bold yellow"
        parts.append(Text.assemble("Held-out accuracy  ", (_verdict(heldout), style)))
        table = Table.grid(padding=(0, 2))
        for label, value, interval in _accuracy_rows(heldout):
            strong = style if label in ("after", "difference") else ""
            table.add_row(Text("  " + label, style="dim"), Text(value, style=strong), Text(interval, style="dim"))
        parts += [table, Text(f"  {heldout['problems']} problems, 95% intervals", style="dim"), Text()]
    else:
        parts += [Text("Held-out accuracy was not measured (schedule.evaluate_every is 0).", style="yellow"), Text()]
    parts.append(Text(f"Files in {clean(str(outcome.folder))}"))
    files = Table.grid(padding=(0, 2))
    for name, text in _files(outcome):
        files.add_row(Text("  " + name, style="cyan"), Text(text, style="dim"))
    parts.append(files)
    following = _next(outcome)
    if following:
        parts += [Text(), Text("Next")]
        for label, command in following.items():
            # A command that is wrapped in a grid cannot be copied, so each stands on a line of its own.
            parts += [Text(f"  {label}", style="dim"), Text(f"    {command}", style="cyan")]
    title = f"{outcome.recipe}: {outcome.steps} steps in {duration(outcome.minutes * 60)}"
    return Panel(Group(*parts), title=Text(title, style="bold"), title_align="left", box=ROUNDED, border_style="green")


def _write(path: Path, text: str) -> None:
    """Atomically: readers find the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, half = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(half, 0o644)
        os.replace(half, path)
    finally:
        Path(half).unlink(missing_ok=True)
