"""Commands on recipes."""

from pathlib import Path
from typing import Annotated

import typer

from align.cli.command import ROOT, Overrides, RecipePath, command
from align.errors import UserError

app = typer.Typer()
SCHEMA = ROOT / "recipes" / "recipe.schema.json"


@app.command("run")
@command
def run_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Run a recipe, or continue it where its run folder stands."""
    from align.recipe.load import load

    resolved = load(recipe, overrides or [])
    from align.build import run_recipe

    return run_recipe(resolved, recipe, overrides or [])


@app.command("check")
@command
def check_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Validate a recipe: every mistake at once, with file and line."""
    from align.recipe.load import load

    print(f"OK {load(recipe, overrides or []).name} ({recipe})")
    return 0


@app.command("config")
@command
def config_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Print a recipe with every default written out."""
    from align.recipe.load import dump_resolved, load

    print(dump_resolved(load(recipe, overrides or [])), end="")
    return 0


@app.command("schema")
@command
def schema_command(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it; - for the terminal.")] = SCHEMA,
) -> int:
    """Write the JSON schema that editors read beside the recipes."""
    from align.recipe import schema_text

    if str(out) == "-":
        print(schema_text(), end="")
        return 0
    try:
        out.write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    print(f"wrote {out}")
    return 0


@app.command("compare")
@command
def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="LABEL=FOLDER...", help="Run folders, grouped by label.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")] = Path("runs/compare.png"),
) -> int:
    """Set groups of runs side by side: held-out accuracy against labelled pairs, with intervals over seeds."""
    from rich.console import Console

    from align.tracking.compare import compare_table, groups, plot_comparison

    curves = groups(runs)
    Console().print(compare_table(curves))
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"drawn to {plot_comparison(curves, out)}")
    return 0
