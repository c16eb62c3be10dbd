"""``align cluster``."""

from typing import Annotated

import typer

from align.cli.command import ROOT, command
from align.errors import UserError

app = typer.Typer(no_args_is_help=True, help="A Ray head on this machine.")


@app.command("up")
@command
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


@app.command("down")
@command
def cluster_down() -> int:
    """Stop the Ray head that `align cluster up` started."""
    from cluster import head

    try:
        print(head.down(ROOT))
    except head.HeadError as error:
        raise UserError(str(error)) from None
    return 0


@app.command("status")
@command
def cluster_status() -> int:
    """Say whether the Ray head runs, and where."""
    from cluster import head

    try:
        print(head.status(ROOT))
    except head.HeadError as error:
        raise UserError(str(error)) from None
    return 0
