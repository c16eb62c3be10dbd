"""``python -m align``, and so the first line of every recipe; works from any Python on a machine that is set up.

It imports the standard library alone: a recipe that is started by a Python without our dependencies moves on to the
repository's own environment, or says how to make one.
"""

import importlib.util
import os
import sys
from pathlib import Path

_NEEDED = ("pydantic", "ruamel", "typer", "rich", "torch", "transformers", "ray")
_MOVED = "ALIGN_MOVED_TO_VENV"


def main() -> int:
    """Runs the command line here, or replaces this process by the environment's Python."""
    moved = os.environ.pop(_MOVED, None) is not None
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        venv = Path(__file__).resolve().parents[1] / ".venv"
        python = venv / "bin" / "python"
        # A broken environment must not call itself for ever.
        if python.is_file() and not moved and Path(sys.prefix).resolve() != venv:
            os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            os.environ[_MOVED] = "1"
            os.execv(python, [str(python), "-m", "align", *sys.argv[1:]])
        print(f"align: {missing[0]} is not installed; run ./setup.sh (or make xpo) first", file=sys.stderr)
        return 2
    from align.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
