"""``align bench step``: where the time of a step goes, beside what the machine can do in the same run."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.bench.machine import cpu_name
from align.bench.memory import PeakMemory
from align.build.preference import PreferenceRun
from align.build.session import Session, commit
from align.checkpoint import write_atomically
from align.errors import UserError
from align.recipe import PreferenceRecipe
from align.tracking.jsonl import METRICS_FILE, read_metrics

WARM_UP_STEPS = 1
GEMM_SIZE = 2048


def main(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
    """Runs the recipe in a temporary folder and prints its phases, medians over the steps after the first."""
    if recipe.schedule.total_steps <= WARM_UP_STEPS:
        raise UserError("the first step is warm-up and is left out: set schedule.total_steps to 2 or more")
    with tempfile.TemporaryDirectory(prefix="polestar-bench-") as folder, ExitStack() as stack:
        moved = recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": folder + "/run"})})
        memory = stack.enter_context(PeakMemory())
        run = PreferenceRun(moved, Session(moved, source, overrides, stack))
        run.prepare()
        gemm = [run.cluster.apply(run.learner, gemm_gflop_per_s, recipe.model.dtype)]
        run.execute()
        gemm.append(run.cluster.apply(run.learner, gemm_gflop_per_s, recipe.model.dtype))
        steps = [m for step, m in read_metrics(run.folder.path / METRICS_FILE) if step > WARM_UP_STEPS]
        report = summarise(steps, gemm)
    # Read after everything has ended, so that the whole run is in it.
    report["peak_memory_gib"] = memory.peak_bytes / 2**30
    report |= {"commit": commit(), "seed": recipe.seed, "cpus": len(os.sched_getaffinity(0)), "machine": cpu_name()}
    print(render(report))
    target = Path("runs") / "bench" / "step.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(report, indent=2) + "\n")
    print(f"written to {target}")
    return 0


def gemm_gflop_per_s(learner: Any, dtype: str) -> float:
    """The rate of square matrix products where the learner lives, best of ten, in 10^9 operations a second."""
    import torch

    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2e-9 * GEMM_SIZE**3 / best


def summarise(steps: Sequence[dict[str, float]], gemm: Sequence[float]) -> dict[str, Any]:
    """Medians and ranges in seconds; the phases of every step add up to it by construction of the tracker."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    def column(name: str) -> list[float]:
        return [step.get(name, 0.0) for step in steps]

    parts = {
        "generate": column("perf/generate_s"),
        "label": column("timing_s/label"),
        "reference": column("perf/reference_s_total"),
        "forward+backward": column("perf/forward_backward_s_total"),
        "optimizer": column("perf/optimizer_s_total"),
        "sync": column("timing_s/sync"),
    }
    whole = column("timing_s/step")
    parts["other"] = [total - sum(p[i] for p in parts.values()) for i, total in enumerate(whole)]
    rates = [
        gflop / seconds
        for gflop, seconds in zip(column("perf/train_gflop_total"), parts["forward+backward"], strict=True)
    ]
    return {
        "steps": len(steps),
        "step_s": spread(whole),
        "phases_s": {name: spread(values) for name, values in parts.items()},
        "pairs": spread(column("label/pairs")),
        "tokens_generated_per_s": spread(column("rollout/tokens_per_s")),
        "forward_backward_gflop_per_s": spread(rates),
        "gemm_gflop_per_s": {"before": gemm[0], "after": gemm[-1]},
        "share_of_gemm": statistics.median(rates) / max(gemm),
        "sync_with_probe_s": spread(parts["sync"]),
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    step = report["step_s"]["median"]
    lines = [f"{'phase':<18}{'median s':>10}{'min':>8}{'max':>8}{'share':>8}"]
    for name, s in report["phases_s"].items():
        lines.append(f"{name:<18}{s['median']:>10.2f}{s['min']:>8.2f}{s['max']:>8.2f}{s['median'] / step:>8.0%}")
    s = report["step_s"]
    lines.append(f"{'step':<18}{s['median']:>10.2f}{s['min']:>8.2f}{s['max']:>8.2f}{1:>8.0%}")
    rate = report["forward_backward_gflop_per_s"]["median"]
    gemm = max(report["gemm_gflop_per_s"].values())
    lines += [
        "",
        f"forward+backward  {rate:.0f} GFLOP/s of useful work, {report['share_of_gemm']:.0%} of the {gemm:.0f} GFLOP/s "
        f"of a {GEMM_SIZE} x {GEMM_SIZE} matrix product in this run",
        f"sync with probe   {report['sync_with_probe_s']['median']:.2f} s",
        f"peak memory       {report['peak_memory_gib']:.2f} GiB of all processes (proportional set size)",
        f"{report['steps']} steps after {WARM_UP_STEPS} of warm-up, seed {report['seed']}, commit {report['commit']}, "
        f"{report['cpus']} cores, {report['machine']}",
    ]
    return "\n".join(lines)
