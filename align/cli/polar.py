"""``align polar``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.command import DEMO_MODEL, ROOT, Overrides, command
from align.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Policy discriminators (POLAR): corpus, conversion, evaluation.")


@app.command("corpus")
@command
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


@app.command("eval")
@command
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


@app.command("triples")
@command
def polar_triples(
    source: Annotated[Path, typer.Argument(help="Answers of policies with a judge's preferences (AlpacaEval's form).")],
    out: Annotated[Path, typer.Argument(help="The new .jsonl file.")],
    split: Annotated[Literal["all", "train", "test"], typer.Option(help="By the prompt.")] = "all",
    held_out: Annotated[int, typer.Option(help="So many policies are never in train.")] = 0,
    policies: Annotated[
        Literal["seen", "held_out", "all"], typer.Option(help="Whose answers are compared; in train those seen.")
    ] = "seen",
    reference: Annotated[Literal["baseline", "best"], typer.Option(help="Whose answer is rank 1.")] = "baseline",
    length: Annotated[
        Literal["any", "balanced"], typer.Option(help="balanced: chosen is the shorter one in half of the triples.")
    ] = "any",
    per_prompt: Annotated[int, typer.Option(help="Most triples of a prompt.")] = 2,
    seed: Annotated[int, typer.Option(help="Decides split, held-out policies and draws.")] = 0,
) -> int:
    """Make ranked triples of judged answers: rank 1 is the reference, 2 chosen, 3 rejected."""
    from align.build import user_errors

    with user_errors():
        from rewards.polar.judged_policies import TripleConfig, judged_triples, read_judged
        from rewards.polar.triples import write_triples

        config = TripleConfig(
            split=split,
            held_out=held_out,
            policies=policies,
            reference=reference,
            length=length,
            per_prompt=per_prompt,
            seed=seed,
        )
        triples = judged_triples(read_judged(source), config)
        if not triples:
            raise UserError(f"{source}: no triple under these options; lower held_out, or take another split")
        write_triples(out, triples)
    print(f"wrote {len(triples)} triples to {out}")
    return 0


@app.command("convert")
@command
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


@app.command("golden")
@command
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


@app.command("ship")
@command
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
