"""``align bench robot``: a robot recipe and its ablations over seeds, several runs at a time, with intervals."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from align.bench.machine import cpu_name
from align.checkpoint import write_atomically
from align.errors import UserError
from align.tracking.intervals import over_seeds
from align.tracking.report import SUMMARY_JSON

_SHARED: Final = (
    "discount: 0.97, bc_steps: 1000, bc: value, bc_form: squared, critic_lr: 1.0e-3, tau: 0.02, temperature: 0.05, "
    "temperature_lr: 3.0e-4, ema: 0.995"
)
"""What recipes/robofume.yaml says of its learner and RLPD's section has too."""

VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "recipe": (),
    "true reward": ("reward={type: truth}",),
    "CQL": ("learner.type=cql",),
    "RLPD": (f"learner={{{_SHARED}, type: rlpd, critics: 5, subset: 2}}", "mixer.updates_per_decision=2.0"),
    "ranker's bonus": ("ranker={bonus: 1.0}",),
    "ranker's filter": ("ranker={least_probability: 0.3}",),
    "other tasks' data": ("prior.other_scenes=[drawer, door]", "prior.other_demonstrations=10"),
    "no prior data": ("mixer.offline_ratio=0.0", "learner.bc_steps=0", "learner.bc=none", "schedule.offline_steps=0"),
}
"""What is changed of a recipe. Without prior data a learned reward still learns from it: there is no other source."""

CHAIN: Final = "chain"
PHASES: Final = ("imitation", "offline", "online", "best")


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    variant: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]


def main(
    recipe: Path, seeds: Sequence[int], variants: Sequence[str], out: Path, *, overrides: Sequence[str], workers: int
) -> int:
    """Runs ``variants`` of ``recipe`` with every seed into ``out``, prints a table and writes ``robot.json`` there.

    Runs that are finished are kept, so that a stopped call goes on. Each of ``workers`` runs at a time gets one
    thread. A run that fails ends the call when the others are done, with the end of what it said.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise UserError(f"unknown variant '{unknown[0]}': choose from {', '.join(VARIANTS)}")
    jobs = [
        Job(name, seed, out / name.replace(" ", "_") / f"seed{seed}", (*overrides, *VARIANTS[name]))
        for seed in seeds
        for name in variants
    ]
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        failures = [failure for failure in pool.map(lambda job: _run(recipe, job), jobs) if failure]
    if failures:
        raise UserError(*failures)
    report = _report(recipe, overrides, jobs, workers)
    write_atomically(out / "robot.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    print(render(report))
    print(f"written to {out / 'robot.json'}")
    return 0


def _run(recipe: Path, job: Job) -> str | None:
    """Runs a job to its end; what went wrong, in a line."""
    if (job.folder / SUMMARY_JSON).exists():
        return None
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "align", "run", str(recipe), f"run.dir={job.folder}", f"seed={job.seed}"),
        *job.overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    print(f"{job.variant}, seed {job.seed}: started", file=sys.stderr)
    with (job.folder / "output.log").open("w") as output:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode == 0 and (job.folder / SUMMARY_JSON).exists():
        print(f"{job.variant}, seed {job.seed}: done", file=sys.stderr)
        return None
    said = (job.folder / "output.log").read_text().strip().splitlines()
    return f"{job.variant}, seed {job.seed} ended with {done.returncode}: {said[-1] if said else 'without a word'}"


def _report(recipe: Path, overrides: Sequence[str], jobs: Sequence[Job], workers: int) -> dict[str, Any]:
    from align.build.session import commit

    runs = [
        {**json.loads((job.folder / SUMMARY_JSON).read_text()), "variant": job.variant, "seed": job.seed}
        for job in jobs
    ]
    return {
        "recipe": str(recipe),
        "overrides": list(overrides),
        "runs": runs,
        "commit": commit(),
        "workers": workers,
        "cpus": len(os.sched_getaffinity(0)),
        "machine": cpu_name(),
    }


def shares(run: Mapping[str, Any], phase: str) -> dict[str, float]:
    """Success rates of a run after ``phase``, by kind of evaluation; empty where it was not evaluated."""
    found = run["phases"].get(phase)
    if found is None:
        return {}
    return {kind: counts["successes"] / counts["attempts"] for kind, counts in found["success"].items()}


def render(report: Mapping[str, Any]) -> str:
    """The report for people: means over seeds with Student's intervals, and paired differences to the last iterate."""
    variants = list(dict.fromkeys(run["variant"] for run in report["runs"]))
    seeds = sorted({run["seed"] for run in report["runs"]})
    command = " ".join([report["recipe"], *report["overrides"]])
    lines = [f"{command}: {len(seeds)} seeds ({seeds[0]} to {seeds[-1]})", ""]
    groups = {name: [run for run in report["runs"] if run["variant"] == name] for name in variants}
    for variant, runs in groups.items():
        lines += [f"**{variant}**", "", *_rows(runs), ""]
    if len(groups) > 1:
        lines += [*_beside(groups), ""]
    lines += [
        f"Means over seeds, 95% intervals by Student's t; `online -` lines are paired differences, seed by seed; "
        f"commit {report['commit']}, {report['workers']} runs at a time on {report['cpus']} cores, {report['machine']}"
    ]
    return "\n".join(lines)


def _rows(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for run in runs for phase in PHASES for kind in shares(run, phase)))
    yield f"| after | {' | '.join(kinds)} |"
    yield "|---" * (1 + len(kinds)) + "|"
    present = [phase for phase in PHASES if all(shares(run, phase) for run in runs)]
    for phase in present:
        yield f"| {phase} | {' | '.join(_interval([shares(run, phase)[kind] for run in runs]) for kind in kinds)} |"
    for phase in [phase for phase in ("imitation", "offline") if phase in present and "online" in present]:
        gaps = [
            _interval([shares(run, "online")[kind] - shares(run, phase)[kind] for run in runs], sign=True)
            for kind in kinds
        ]
        yield f"| online - {phase} | {' | '.join(gaps)} |"
    rates = [run["interventions_per_100_attempts"] for run in runs if run["interventions_per_100_attempts"] is not None]
    minutes = [run["minutes"] for run in runs]
    yield ""
    asked = f"{_interval(rates, form='.1f')} hard resets asked for in 100 attempts, " if rates else ""
    yield f"{asked}{min(minutes):.1f} to {max(minutes):.1f} minutes a run"


def _beside(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Success in the chain, variant by variant, and the last iterates' paired differences to the first variant's."""
    first, base = next(iter(groups.items()))
    yield f"**In the chain** (differences of the last iterates to {first}, seed by seed)"
    yield ""
    yield f"| variant | {' | '.join(PHASES)} | - {first} | hard resets in 100 attempts | minutes |"
    yield "|---" * (4 + len(PHASES)) + "|"
    for variant, runs in groups.items():
        cells = []
        for phase in PHASES:
            rates = [shares(run, phase).get(CHAIN) for run in runs]
            known = [rate for rate in rates if rate is not None]
            cells.append(_interval(known) if known and len(known) == len(runs) else "")
        pairs = [
            shares(run, "online")[CHAIN] - shares(other, "online")[CHAIN]
            for run in runs
            for other in base
            if variant != first and run["seed"] == other["seed"] and CHAIN in shares(run, "online")
        ]
        cells.append(_interval(pairs, sign=True) if pairs else "")
        asked = [run["interventions_per_100_attempts"] for run in runs]
        cells.append("" if None in asked else _interval(asked, form=".1f"))
        minutes = [run["minutes"] for run in runs]
        yield f"| {variant} | {' | '.join(cells)} | {min(minutes):.1f} to {max(minutes):.1f} |"


def _interval(values: Sequence[float], *, sign: bool = False, form: str = ".2f") -> str:
    mean, low, high = over_seeds(values)
    form = f"+{form}" if sign else form
    return f"{mean:{form}}" if math.isinf(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"
