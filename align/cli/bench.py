"""``align bench``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.command import DEMO_MODEL, ROOT, Overrides, command
from align.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Measurements.")


@app.command("step")
@command
def bench_step(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]")] = ROOT / "recipes" / "bench" / "step.yaml",
    overrides: Overrides = None,
) -> int:
    """Measure the phases of one training step."""
    from align.recipe.load import load

    resolved = load(recipe, overrides or [])
    if resolved.kind != "preference":
        raise UserError(f"{recipe}: is a recipe of kind '{resolved.kind}'; a step is measured of kind 'preference'")
    from align.bench.step import main as measure

    return measure(resolved, recipe, overrides or [])


@app.command("score")
@command
def bench_score(
    model: Annotated[str, typer.Option(help="A POLAR model, or a backbone that gets a random head.")] = DEMO_MODEL,
    repeats: Annotated[int, typer.Option(help="Measured passes of each form.")] = 3,
) -> int:
    """Measure scoring: groups that share prompt and reference, with and without prefix reuse, and a plain loop."""
    from align.bench.score import main as measure

    return measure(model, repeats)


@app.command("serve")
@command
def bench_serve(
    model: Annotated[str, typer.Option(help="A POLAR model, or a backbone that gets a random head.")] = DEMO_MODEL,
    items: Annotated[int, typer.Option(help="Least items of one measurement.")] = 64,
    concurrency: Annotated[list[int] | None, typer.Option(help="Clients at once; repeat it. 1, 8, 64.")] = None,
    repeats: Annotated[int, typer.Option(help="Measurements of each arm.")] = 1,
) -> int:
    """Load a server with groups that share a reference: items a second and latencies, beside vLLM's own server."""
    from align.bench.serve import main as measure

    return measure(model, items, concurrency or (1, 8, 64), repeats)


@app.command("logps")
@command
def bench_logps(
    model: Annotated[str, typer.Option(help="The model, by any name that recipes know.")] = DEMO_MODEL,
    repeats: Annotated[int, typer.Option(help="Measured passes of each form.")] = 5,
) -> int:
    """Measure log-probabilities without the logits of a whole batch against the plain form: time and memory."""
    from align.bench.logps import main as measure

    return measure(model, repeats)


@app.command("robot")
@command
def bench_robot(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]")] = ROOT / "recipes" / "robofume.yaml",
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="So many, from 0.")] = 5,
    variants: Annotated[str, typer.Option(help="Names with commas; an unknown one lists them all.")] = (
        "recipe,true reward,CQL,RLPD,no prior data"
    ),
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the runs; one that is there goes on.")] = Path(
        "runs/bench/robot"
    ),
    workers: Annotated[int, typer.Option(help="Runs at a time, a thread each.")] = 2,
) -> int:
    """Run a robot recipe and its ablations with several seeds: success with intervals, after each phase."""
    from align.bench.robot import main as measure

    names = [name.strip() for name in variants.split(",")]
    return measure(recipe, range(seeds), names, out, overrides=overrides or [], workers=workers)


@app.command("ranking")
@command
def bench_ranking(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]")] = ROOT / "recipes" / "robofume.yaml",
    overrides: Overrides = None,
    source: Annotated[Literal["state", "image"], typer.Option(help="What is read of an attempt.")] = "state",
    seeds: Annotated[int, typer.Option(help="So many, from 0.", min=1)] = 5,
    policies: Annotated[int, typer.Option(help="Policies to learn from.", min=2)] = 32,
    held_out: Annotated[int, typer.Option(help="Others to be asked about.", min=2)] = 20,
    attempts: Annotated[int, typer.Option(help="Of each policy at each task.", min=2)] = 4,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the report.")] = Path("runs/bench/ranking"),
) -> int:
    """A policy discriminator over a robot's trajectories (POLAR), beside plain distances to demonstrations."""
    from align.recipe.load import load

    resolved = load(recipe, overrides or [])
    if resolved.kind != "robot" or resolved.environment.type == "gym":
        raise UserError(f"{recipe}: needs a recipe of kind 'robot' whose scene has scripts, Meta-World's or the point")
    from align.bench.ranking import main as measure

    return measure(
        resolved, range(seeds), source=source, policies=policies, held_out=held_out, attempts=attempts, out=out
    )
