"""The run in a terminal: a line a step, samples now and then, and a live footer. Plain lines where there is no TTY."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.box import ROUNDED
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from align.protocols import Metrics
from align.tracking.alerts import AlertOnce
from align.tracking.samples import SampleRow
from align.tracking.text import NONE, bottleneck, clean, count, cut, duration, number, spark

VERDICT_STYLE = {"chosen": "green", "rejected": "red"}
# Heading, width, and the narrowest terminal that shows the column.
ACCURACY = "held-out accuracy"
COLUMNS = (
    ("step", 5, 0),
    ("reward", 8, 0),
    (ACCURACY, 20, 34),
    ("KL", 7, 41),
    ("loss", 7, 48),
    ("pairs", 6, 54),
    ("time", 8, 62),
    ("mostly", 15, 77),
)
LEFT = (ACCURACY, "mostly")


class ConsoleSink:
    """Shows a run of ``total_steps`` to people. ``header`` is what stands above it: recipe, model, run folder.

    Every ``table_every`` steps (0: never) a table of up to ``table_rows`` samples. ``file`` is where the terminal is
    (standard output unless :func:`align.tracking.logs.redirect_fds` gave another). Live only on a real terminal; else
    one plain line a step, fit for job logs. ``kl_limit`` sets off a warning, in nats per completion.
    """

    name = "console"

    def __init__(
        self,
        total_steps: int,
        header: dict[str, str],
        table_every: int = 5,
        table_rows: int = 3,
        kl_limit: float = 25.0,
        file: TextIO | None = None,
    ) -> None:
        self.console = terminal_console(file)
        self._own_stdout = file is None
        # Not is_terminal alone: FORCE_COLOR sets it in CI logs too, and those cannot be redrawn.
        stream = self.console.file
        tty = hasattr(stream, "isatty") and stream.isatty()
        self._fancy = tty and self.console.is_terminal and not self.console.is_dumb_terminal
        self._unicode = (self.console.encoding or "").lower().startswith("utf")
        self._total, self._header = total_steps, header
        self._table_every, self._table_rows = table_every, table_rows
        self._alerts = AlertOnce(kl_limit)
        self._live: Live | None = None
        self._spinner = Spinner("dots" if self._unicode else "line", style="cyan")
        self._phase, self._step = "", 0
        self._elapsed, self._marked = 0.0, time.monotonic()
        self._step_seconds: list[float] = []
        self._rewards: list[float] = []
        self._accuracy: list[float] = []
        self._headed = self._opened = False
        self._pending: list[SampleRow] = []

    def open(self) -> None:
        self._opened, self._marked = True, time.monotonic()
        if not self._fancy:
            self._plain("  ".join(f"{key} {clean(value)}" for key, value in self._header.items()))
            return
        grid = Table.grid(padding=(0, 2))
        for key, value in self._header.items():
            grid.add_row(Text(key, style="dim"), Text(self._safe(clean(value)), overflow="ellipsis", no_wrap=True))
        self.console.print(Panel(grid, title="Polestar", title_align="left", box=ROUNDED, border_style="cyan"))
        # A stray print goes above the footer; where the descriptors lead to a file it goes there instead.
        self._live = Live(
            get_renderable=self._footer,
            console=self.console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=self._own_stdout,
            redirect_stderr=self._own_stdout and sys.stderr.isatty(),
        )
        self._live.start()

    def phase(self, name: str) -> None:
        self._phase = name

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        if self._table_every <= 0 or not (step <= 1 or step % self._table_every == 0):
            return
        # A pair tells more than a completion that nothing was learnt from.
        self._pending = sorted(rows, key=lambda row: not row.verdict)[: self._table_rows]

    def media(self, name: str, file: Path, step: int) -> None:
        """Pictures are for elsewhere."""

    def write(self, step: int, metrics: Metrics) -> None:
        self._step = step
        self._elapsed, self._marked = metrics.get("perf/elapsed_s", 0.0), time.monotonic()
        if step > 0:
            self._step_seconds = [*self._step_seconds, metrics.get("timing_s/step", 0.0)][-12:]
        if "reward/mean" in metrics:
            self._rewards.append(metrics["reward/mean"])
        if "eval/accuracy" in metrics:
            self._accuracy.append(metrics["eval/accuracy"])
        if self._fancy:
            self._step_row(step, metrics)
        else:
            self._plain(self._step_line(step, metrics))
        self._show_samples(step)
        for alert in self._alerts.new(step, metrics):
            if self._fancy:
                self.console.print(Text.assemble((f"! {alert.title}: ", "bold yellow"), self._safe(alert.text)))
            else:
                self._plain(f"warning: {alert.title}: {alert.text}")

    def close(self, failed: bool = False) -> None:
        """Gives the terminal back: the footer is wiped, the cursor shown."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
        if failed and self._opened:
            self._opened = False
            self._plain(
                f"stopped in step {self._step + 1} of {self._total}: the same command goes on from the last checkpoint"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "rewards": list(self._rewards),
            "accuracy": list(self._accuracy),
            "alerts": self._alerts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])
        self._rewards, self._accuracy = list(state["rewards"]), list(state["accuracy"])
        self._alerts.load_state_dict(state["alerts"])

    def _remaining(self, since_write: float) -> float | None:
        """Seconds to the end, from the mean of the last steps; ``None`` before the first."""
        if not self._step_seconds:
            return None
        mean = sum(self._step_seconds) / len(self._step_seconds)
        return max(0.0, (self._total - self._step) * mean - min(since_write, mean))

    def _footer(self) -> RenderableType:
        since = time.monotonic() - self._marked
        done, total = self._step, max(1, self._total)
        width = self.console.width
        self._spinner.update(text=Text(self._phase or "starting", style="cyan"))
        bar = ProgressBar(total=total, completed=done, width=max(8, min(32, width - 50)), pulse=False)
        left = self._remaining(since)
        eta = f"{duration(left)} left" if left is not None else ""
        line = Table.grid(padding=(0, 2))
        line.add_row(
            bar,
            Text(f"{done}/{self._total}", style="bold"),
            Text(f"{duration(self._elapsed + since)} elapsed", style="dim"),
            Text(eta, style="dim"),
            self._spinner,
        )
        facts = Text(no_wrap=True, overflow="ellipsis")
        if self._accuracy:
            arrow = f" {self._safe('→')} {number(self._accuracy[-1])}" if len(self._accuracy) > 1 else ""
            facts.append("held-out accuracy ", style="dim").append(
                number(self._accuracy[0]) + arrow, style="bold green"
            )
        if self._rewards:
            facts.append("   reward " if facts else "reward ", style="dim").append(number(self._rewards[-1]))
            if self._unicode:
                facts.append(" " + spark(self._rewards), style="magenta")
        return Group(Text(), line, facts) if facts else Group(Text(), line)

    def _step_row(self, step: int, metrics: Metrics) -> None:
        cells = [
            str(step),
            number(metrics.get("reward/mean")),
            _accuracy(metrics),
            number(metrics.get("objective/kl")),
            number(metrics.get("loss/total")),
            count(metrics.get("label/pairs")),
            duration(metrics.get("timing_s/step")),
            bottleneck(metrics),
        ]
        shown = [
            (heading, width, cell)
            for (heading, width, narrowest), cell in zip(COLUMNS, cells, strict=True)
            if self.console.width >= narrowest
        ]
        if not self._headed:
            self._headed = True
            heading = "".join(_pad(heading, width, heading in LEFT) for heading, width, _ in shown).rstrip()
            self.console.print(Text("\n" + heading, style="dim underline"), no_wrap=True)
        line = Text(no_wrap=True, overflow="ellipsis")
        for heading, width, cell in shown:
            style = "dim" if cell == NONE else "green" if heading == ACCURACY else ""
            line.append(_pad(self._safe(cell), width, heading in LEFT), style=style)
        self.console.print(line)

    def _step_line(self, step: int, metrics: Metrics) -> str:
        parts = [f"step {step}/{self._total}"]
        for label, name in (("reward", "reward/mean"), ("kl", "objective/kl"), ("loss", "loss/total")):
            if name in metrics:
                parts.append(f"{label} {number(metrics[name])}")
        if "label/pairs" in metrics:
            parts.append(f"pairs {count(metrics['label/pairs'])}")
        if "eval/accuracy" in metrics:
            parts.append(f"held-out accuracy {_accuracy(metrics)}")
        most = bottleneck(metrics)
        parts.append(duration(metrics.get("timing_s/step")) + (f" ({most})" if most else ""))
        left = self._remaining(0.0)
        if left is not None and step < self._total:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _sample_table(self, step: int, rows: Sequence[SampleRow]) -> Table:
        table = Table(
            title=f"samples of step {step}",
            title_style="dim",
            title_justify="left",
            box=ROUNDED,
            border_style="dim",
            header_style="dim",
            show_lines=len(rows) > 1,
            expand=False,
            width=min(self.console.width, 120),
        )
        wide = self.console.width >= 70
        table.add_column("prompt", ratio=2)
        table.add_column("completion", ratio=3)
        table.add_column("reward", justify="right", no_wrap=True)
        if wide:
            table.add_column("from", no_wrap=True)
        table.add_column("became", no_wrap=True)
        for row in rows:
            cells = [
                Text(self._safe(cut(clean(row.prompt), 120))),
                Text(self._safe(cut(clean(row.completion), 180))),
                Text("none" if row.reward is None else count(row.reward)),
                Text(row.origin, style="dim"),
                Text(self._safe(row.verdict or NONE), style=VERDICT_STYLE.get(row.verdict, "dim")),
            ]
            table.add_row(*(cells if wide else cells[:3] + cells[4:]))
        return table

    def _show_samples(self, step: int) -> None:
        rows, self._pending = self._pending, []
        if rows and self._fancy:
            self.console.print(self._sample_table(step, rows))
            self._headed = False
        elif not self._fancy:
            for row in rows:
                self._plain(f"sample of step {step}: {_sample_line(row)}")

    def _plain(self, text: str) -> None:
        """One line, however long: a log is cut by its reader, not by us."""
        self.console.print(self._safe(text), markup=False, soft_wrap=True)

    def _safe(self, text: str) -> str:
        """``text`` in characters that the terminal's encoding has."""
        encoding = self.console.encoding or "ascii"
        return text if self._unicode else text.encode(encoding, errors="replace").decode(encoding)


def terminal_console(file: TextIO | None = None) -> Console:
    """A rich console on ``file``, as wide as the terminal behind it."""
    console = Console(file=file, highlight=False)
    # rich asks the standard streams for the width, and ours may lead to a log file while ``file`` is the terminal.
    with contextlib.suppress(OSError, ValueError):
        if file is not None and not any(stream.isatty() for stream in (sys.__stdin__, sys.__stdout__) if stream):
            console.size = ConsoleDimensions(*os.get_terminal_size(file.fileno()))
    return console


def _pad(cell: str, width: int, left: bool) -> str:
    """``cell`` in ``width`` columns, two of them the gap to the cell before it."""
    return "  " + cell.ljust(width - 2) if left else cell.rjust(width)


def _accuracy(metrics: Metrics) -> str:
    value = metrics.get("eval/accuracy")
    low, high = metrics.get("eval/accuracy_low"), metrics.get("eval/accuracy_high")
    if value is None or low is None or high is None:
        return number(value)
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def _sample_line(row: SampleRow) -> str:
    reward = "none" if row.reward is None else count(row.reward)
    what = " ".join(part for part in (row.origin, row.verdict) if part)
    return f"{what}, reward {reward}: {cut(clean(row.prompt), 120)} => {cut(clean(row.completion), 180)}"
