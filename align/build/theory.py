"""The theory experiments, from their recipe."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from align.build.session import Session
from align.checkpoint import write_atomically
from align.recipe import BanditRecipe
from align.tracking.console import terminal_console
from align.tracking.jsonl import JsonlSink
from align.tracking.report import SUMMARY_TEXT
from align.tracking.tracker import RunTracker

Experiment = tuple[str, RenderableType, Iterable[tuple[int, dict[str, float]]], Callable[[Path], Path]]
"""Its name, its table, its numbers by round, and what draws it."""


def run_theory(recipe: BanditRecipe, session: Session) -> None:
    """Plays the bandit and, where the recipe has it, trains the small language model; shows tables and pictures."""
    if session.has_summary():
        session.show_finished("start another with run.dir=runs/new")
        return
    experiments = [*_bandit(recipe, session), *_sequences(recipe, session)]
    wandb = session.wandb()
    with RunTracker([JsonlSink(session.folder.path), wandb]) as tracker:
        *rounds, (last, numbers) = _joined(experiments)
        for round_, values in rounds:
            tracker.log(round_, values)
        # Before the numbers of the last round: those end it, and what comes later for the same round is dropped.
        for name, _, _, plot in experiments:
            wandb.media(name, plot(session.folder.path / f"{name}.png"), last)
        tracker.log(last, numbers)
    tables = [table for _, table, _, _ in experiments]
    console = terminal_console(session.terminal)
    if console.is_terminal:
        console.print(*tables)
    else:
        session.terminal.write(_text(tables))
    session.say(f"pictures and numbers are in {session.folder.path}")
    write_atomically(session.folder.path / SUMMARY_TEXT, _text(tables))


def _bandit(recipe: BanditRecipe, session: Session) -> Iterator[Experiment]:
    from align.theory.bandit import BanditConfig, run_bandit
    from align.theory.report import bandit_metrics, bandit_table, plot_bandit

    result = run_bandit(BanditConfig(**recipe.bandit.model_dump(), seed=recipe.seed))
    yield "bandit", bandit_table(result), bandit_metrics(result), lambda path: plot_bandit(result, path)


def _sequences(recipe: BanditRecipe, session: Session) -> Iterator[Experiment]:
    if recipe.sequences is None:
        return
    from align.theory.report import plot_sequences, sequences_metrics, sequences_table
    from align.theory.sequences import SequencesConfig, run_sequences

    section = recipe.sequences
    session.say(f"a small language model: {section.rounds} rounds for each of {len(section.seeds)} seeds and arms")
    result = run_sequences(SequencesConfig(**section.model_dump()))
    yield "sequences", sequences_table(result), sequences_metrics(result), lambda path: plot_sequences(result, path)


def _joined(experiments: Sequence[Experiment]) -> Iterator[tuple[int, dict[str, float]]]:
    """The numbers of all experiments by round: they count the same rounds, under names of their own."""
    rounds: dict[int, dict[str, float]] = {}
    for _, _, numbers, _ in experiments:
        for round_, values in numbers:
            rounds.setdefault(round_, {}).update(values)
    yield from sorted(rounds.items())


def _text(tables: Iterable[RenderableType]) -> str:
    text = io.StringIO()
    console = Console(file=text, width=150)
    for table in tables:
        console.print(table)
    return text.getvalue()
