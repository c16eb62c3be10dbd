"""The command line. Commands import what they need when they run, so that ``align check`` stays quick."""

import sys
from collections.abc import Sequence

import typer

from align.cli import bench, cluster, episodes, polar, recipe, serving

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align language models and robots with what people want. A recipe is the program: align run recipes/xpo.yaml",
)
for part in (recipe, serving):
    app.add_typer(part.app)
app.add_typer(cluster.app, name="cluster")
app.add_typer(polar.app, name="polar")
app.add_typer(episodes.app, name="episodes")
app.add_typer(bench.app, name="bench")


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
