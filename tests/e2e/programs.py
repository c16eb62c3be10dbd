"""Starting recipes as a user does, and reading what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMOKE = "recipes/smoke/xpo_tiny.yaml"
CLOCKS = ("timing_s/", "perf/", "sync/load_s", "sync/probe_s", "rollout/tokens_per_s", "rollout/engine_recoveries")


def environment() -> dict[str, str]:
    """Ours, with the environment's programs first on PATH, as an activated one has them."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """A program in a process group of its own, in the repository."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def finish(*words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    process = start(*words)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics, without what clocks say."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCKS)} for line in lines]


def weights(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "policy" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    import torch

    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
