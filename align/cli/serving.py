"""Scores over HTTP and of files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.command import SHIPPED_MODEL, command

app = typer.Typer()


@app.command("serve")
@command
def serve_command(
    model: Annotated[str, typer.Option(help="A POLAR model: a folder, hub:ORG/NAME or polar:NAME.")] = SHIPPED_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    backend: Annotated[Literal["vllm", "transformers"], typer.Option(help="What computes the scores.")] = "vllm",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Number format of the model.")] = "bfloat16",
    max_context: Annotated[int | None, typer.Option(help="Longest item, in tokens; the model's by default.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the bearer token.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="JSON lines with prompt and reference, for clients that send none.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Replicas on Ray Serve, in place of this process.")] = False,
    replicas: Annotated[int, typer.Option(help="With --ray: copies of the model behind the address.")] = 1,
    num_cpus: Annotated[float, typer.Option(help="With --ray: CPUs that each replica books.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="With --ray: GPUs that each replica books.")] = 0.0,
    ray_address: Annotated[
        str | None, typer.Option(help="With --ray: the cluster; by default the job's, or one started here.")
    ] = None,
) -> int:
    """Serve a reward model over HTTP: scores, comparisons, and other servers' dialects. The manual is at /docs."""
    from align.build import user_errors

    with user_errors():
        from rewards.serve.main import ServeSettings, serve

        settings = ServeSettings(
            model=model,
            host=host,
            port=port,
            backend=backend,
            dtype=dtype,
            max_context=max_context,
            token_env=token_env,
            references=references,
        )
        if not ray:
            return serve(settings)
        from align.build.scoring import serve_on_ray

        return serve_on_ray(settings, replicas, num_cpus, num_gpus, ray_address)


@app.command("score")
@command
def score_command(
    source: Annotated[Path, typer.Argument(help="JSON lines with prompt, reference and output, or outputs.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default SOURCE with .scores before .jsonl.")
    ] = None,
    model: Annotated[str, typer.Option(help="A POLAR model, scored in this process.")] = SHIPPED_MODEL,
    url: Annotated[str | None, typer.Option(help="A server that scores, in place of a model.")] = None,
    backend: Annotated[Literal["vllm", "transformers"], typer.Option(help="What computes the scores.")] = "vllm",
    max_context: Annotated[int | None, typer.Option(help="Longest item, in tokens; the model's by default.")] = None,
) -> int:
    """Score a file, or go on where an earlier call was stopped."""
    from align.build import user_errors
    from align.build.scoring import score

    with user_errors():
        return score(source, out or source.with_suffix(".scores.jsonl"), model, url, backend, max_context)
