"""The walls of the architecture: who may import whom, and where each heavy library lives.

Imports are read from the syntax tree, lazy and type-checking ones included, so that no wall has a back door.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "cluster": set[str](),
    "rollouts": set[str](),
    "rewards": {"rollouts"},
    "align": {"rollouts", "rewards", "cluster"},
}
HOME = {
    "ray": "cluster.",
    "vllm": "rollouts.engines.",
    "gymnasium": "rollouts.envs.",
    "mujoco": "rollouts.envs.",
    "metaworld": "rollouts.envs.",
    "minari": "rollouts.envs.",
    "wandb": "align.tracking.",
    "fastapi": "rewards.serve.",
}
# Inside align, what stands further left never reaches what stands further right, not even through a third module.
ORDER = ("align.losses", "align.learners", "align.loop", "align.build", "align.cli")

Sources = Mapping[str, str]


def violations(sources: Sources) -> list[str]:
    """One line for each broken rule in ``{dotted module name: source text}``."""
    imports = {module: set(_imports(module, text)) for module, text in sources.items()}
    found = [line for module, targets in imports.items() for target in targets for line in _direct(module, target)]
    for module in imports:
        rank = _rank(module)
        if rank is None:
            continue
        for reached in _reach(module, imports):
            other = _rank(reached)
            if other is not None and other > rank:
                found.append(f"{module} reaches {reached}: {ORDER[rank]} may not know {ORDER[other]}")
    loop_knows = imports.get("align.loop", set())
    found += [
        f"align.loop imports {target}: the loop knows the Protocols and nothing else"
        for target in loop_knows
        if _top(target) not in sys.stdlib_module_names and not _inside(target, "align.protocols")
    ]
    return sorted(found)


def _direct(module: str, target: str) -> Iterator[str]:
    package, wanted = _top(module), _top(target)
    if wanted in MAY_IMPORT and wanted != package and wanted not in MAY_IMPORT[package]:
        yield f"{module} imports {target}: {package} may not import {wanted}"
    home = HOME.get(wanted)
    if home and not f"{module}.".startswith(home):
        yield f"{module} imports {target}: {wanted} lives in {home}* only"


def _imports(module: str, text: str) -> Iterator[str]:
    """Dotted names of everything that a module imports; a package's ``__init__`` is named ``package.__init__``."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                start = ".".join(module.split(".")[:-level]) if level else ""
                stem = ".".join(part for part in (start, base) if part)
                # `from align import build` imports a module; `from align.loop import run` a name, which does no harm.
                yield from (f"{stem}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Name(id="__import__" | "import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def _reach(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    queue = [module]
    while queue:
        for target in imports[queue.pop()]:
            for known in imports:
                if known not in seen and _inside(target, known.removesuffix(".__init__")):
                    seen.add(known)
                    queue.append(known)
    return seen


def _rank(module: str) -> int | None:
    return next((rank for rank, part in enumerate(ORDER) if _inside(module, part)), None)


def _inside(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")


def _top(name: str) -> str:
    return name.partition(".")[0]


def _sources() -> dict[str, str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for package in MAY_IMPORT
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_the_walls_stand() -> None:
    sources = _sources()
    assert {_top(module) for module in sources} == set(MAY_IMPORT)
    assert "align.loop" in sources
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        ({"cluster.host": "import rollouts.types"}, "cluster may not import rollouts"),
        ({"cluster.host": "from align import build"}, "cluster may not import align"),
        ({"rollouts.collector": "from rewards.types import Score"}, "rollouts may not import rewards"),
        ({"rollouts.collector": "def f():\n    import cluster.host"}, "rollouts may not import cluster"),
        ({"rewards.labeller": "from align.types import PairLogps"}, "rewards may not import align"),
        ({"rewards.labeller": "import cluster"}, "rewards may not import cluster"),
        ({"align.build": "import ray"}, "ray lives in cluster.* only"),
        ({"align.build": "def f():\n    from ray.util import state"}, "ray lives in cluster.* only"),
        ({"align.build": "import importlib\nimportlib.import_module('ray')"}, "ray lives in cluster.* only"),
        ({"align.build": "from importlib import import_module\nimport_module('ray')"}, "ray lives in cluster.* only"),
        ({"rollouts.collector": "__import__('vllm')"}, "vllm lives in rollouts.engines.* only"),
        ({"rollouts.engines2": "import vllm"}, "vllm lives in rollouts.engines.* only"),
        (
            {"rewards.x": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vllm"},
            "vllm lives in rollouts.engines.* only",
        ),
        ({"align.evaluate": "import wandb"}, "wandb lives in align.tracking.* only"),
        ({"rollouts.robot": "import gymnasium as gym"}, "gymnasium lives in rollouts.envs.* only"),
        ({"rewards.remote": "import fastapi"}, "fastapi lives in rewards.serve.* only"),
        ({"align.losses.xpo": "from align.learners.optim import x", "align.learners.optim": ""}, "align.losses may"),
        ({"align.losses.xpo": "from ..learners import optim", "align.learners.optim": ""}, "align.losses may not know"),
        ({"align.learners.preference": "from align import loop", "align.loop": ""}, "align.learners may not know"),
        ({"align.learners.__init__": "from ..loop import run", "align.loop": ""}, "align.learners may not know"),
        ({"align.loop": "import align.build", "align.build": ""}, "align.loop may not know align.build"),
        ({"align.build": "from align.cli import app", "align.cli": ""}, "align.build may not know align.cli"),
        (
            {"align.losses.xpo": "import align.types", "align.types": "import align.build", "align.build": ""},
            "align.losses may not know align.build",
        ),
        ({"align.loop": "from rollouts.types import Rollout"}, "the loop knows the Protocols"),
        ({"align.loop": "import torch"}, "the loop knows the Protocols"),
    ],
)
def test_a_planted_violation_is_found(planted: Sources, rule: str) -> None:
    assert any(rule in line for line in violations(planted)), violations(planted)


def test_what_is_allowed_is_not_reported() -> None:
    allowed = {
        "cluster.host": "import ray\nfrom cluster import weights",
        "rollouts.engines.vllm_engine": "def f():\n    from vllm import LLM",
        "rewards.labeller": "from rollouts.types import Rollout",
        "rewards.serve.app": "import fastapi",
        "align.tracking.wandb_tracker": "import wandb",
        "align.protocols": "from rollouts.types import WeightUpdate",
        "align.losses.preference": "import torch",
        "align.learners.preference": "from align.losses import preference",
        "align.loop": "import math\nfrom align.protocols import Learner",
        "align.build": "from align.loop import run\nfrom align.learners import preference\nimport cluster.host",
        "align.cli": "def f():\n    from align.build import run_recipe",
        "align.wandb": "from align.tracking import wandb_tracker",
        "rewards.rays": "import rayleigh",
    }
    assert violations(allowed) == []
