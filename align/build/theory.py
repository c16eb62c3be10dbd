"""The theory experiments, from their recipe."""

import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType

from align.build.session import Session
from align.checkpoint import write_atomically
from align.recipe import BanditRecipe
from align.tracking.console import terminal_console
from align.tracking.jsonl import JsonlSink
from align.tracking.report import SUMMARY_TEXT
from align.tracking.tracker import RunTracker


def run_theory(recipe: BanditRecipe, session: Session) -> None:
    """Plays the bandit and, where the recipe has it, trains the small language model; shows tables and pictures."""
    if session.has_summary():
        session.show_finished("start another with run.dir=runs/new")
        return
    tables = [*_bandit(recipe, session), *_sequences(recipe, session)]
    console = terminal_console(session.terminal)
    for table in tables:
        console.print(table)
    session.say(f"pictures and numbers are in {session.folder.path}")
    write_atomically(session.folder.path / SUMMARY_TEXT, _text(tables))


def _bandit(recipe: BanditRecipe, session: Session) -> Iterable[RenderableType]:
    from align.theory.bandit import BanditConfig, run_bandit
    from align.theory.report import bandit_metrics, bandit_table, plot_bandit

    result = run_bandit(BanditConfig(**recipe.bandit.model_dump(), seed=recipe.seed))
    picture = plot_bandit(result, session.folder.path / "bandit.png")
    wandb = session.wandb()
    with RunTracker([JsonlSink(session.folder.path), wandb]) as tracker:
        step = 0
        for step, numbers in bandit_metrics(result):
            tracker.log(step, numbers)
        wandb.picture("bandit", picture, step)
    yield bandit_table(result)


def _sequences(recipe: BanditRecipe, session: Session) -> Iterable[Any]:
    if recipe.sequences is None:
        return
    from align.theory.sequences import SequencesConfig, run_sequences
    from align.theory.sequences_report import plot_sequences, sequences_table

    section = recipe.sequences
    session.say(f"a small language model: {section.rounds} rounds for each of {section.seeds} seeds and three losses")
    seeds = tuple(range(recipe.seed, recipe.seed + section.seeds))
    result = run_sequences(SequencesConfig(**section.model_dump(exclude={"seeds"}), seeds=seeds))
    plot_sequences(result, session.folder.path / "sequences.png")
    yield sequences_table(result)


def _text(tables: Iterable[RenderableType]) -> str:
    text = io.StringIO()
    console = Console(file=text, width=150)
    for table in tables:
        console.print(table)
    return text.getvalue()
