"""``align bench ranking``: a policy discriminator over a robot's trajectories, beside plain distances.

POLAR's question (arXiv 2507.05197) for robots: is this attempt the work of the reference's policy? Policies are
scripts in manners of their own; half of the question is asked of policies that were in no training.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from align.bench.machine import cpu_name
from align.checkpoint import write_atomically
from align.recipe.robot import RobotRecipe
from align.tracking.intervals import over_seeds
from rollouts.envs.types import Episode, Source

Results: TypeAlias = dict[str, dict[str, list[float | None]]]
"""For each way of scoring and each measure its values, seed by seed."""

MEASURES = ("pair_accuracy", "success_auroc", "policy_spearman")


def main(
    recipe: RobotRecipe, seeds: Sequence[int], *, source: str, policies: int, held_out: int, attempts: int, out: Path
) -> int:
    """Fits and asks once for each of ``seeds``, which draw policies, scenes and networks; prints and writes the means.

    ``policies`` are learnt from and ``held_out`` are asked about, each with ``attempts`` at each task of the recipe's
    scene. Of what an attempt looks like only ``source`` is read, ``state`` or ``image``. The references are as many
    demonstrations as the recipe's prior has.
    """
    results: Results = {}
    successes: list[float] = []
    for seed in seeds:
        print(f"seed {seed}: rolling out {policies + held_out} policies", file=sys.stderr)
        rows, share = _once(recipe, seed, source, policies, held_out, attempts)
        successes.append(share)
        for name, measures in rows.items():
            for measure in MEASURES:
                results.setdefault(name, {}).setdefault(measure, []).append(measures[measure])
    counts = {"policies": policies, "held_out": held_out, "attempts": attempts}
    report = _report(recipe, seeds, source, counts, results, successes)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "ranking.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    print(render(report))
    print(f"written to {out / 'ranking.json'}")
    return 0


def _once(
    recipe: RobotRecipe, seed: int, source: str, policies: int, held_out: int, attempts: int
) -> tuple[dict[str, dict[str, float | None]], float]:
    """What each way of scoring reaches, and the held-out policies' share of successes."""
    from rewards.success.discriminator import DiscriminatorConfig, TrajectoryDiscriminator
    from rewards.success.ranking import evaluate
    from rewards.success.trajectories import TrajectoryConfig

    seen, unseen, references = _experience(recipe, seed, source == "image", policies, held_out, attempts)
    looks = TrajectoryConfig(source="image" if source == "image" else "state")
    discriminator = TrajectoryDiscriminator(DiscriminatorConfig(looks, seed=seed))
    discriminator.fit(seen)
    ranked = evaluate(discriminator, unseen, references, seed=seed)
    share = [episode.succeeded for group in unseen.values() for episode in group]
    return {
        row.name: {
            "pair_accuracy": row.pair_accuracy.value,
            "success_auroc": row.success_auroc,
            "policy_spearman": row.policy_spearman,
        }
        for row in ranked
    }, sum(share) / len(share)


def _experience(
    recipe: RobotRecipe, seed: int, image: bool, policies: int, held_out: int, attempts: int
) -> tuple[dict[str, list[Episode]], dict[str, list[Episode]], list[Episode]]:
    """Attempts of policies to learn from and of others to be asked about, and demonstrations."""
    from align.build.robot_scene import open_scene
    from rollouts.envs.api import derive_seed
    from rollouts.envs.experts import StyledPolicy, draw_style, expert
    from rollouts.envs.rollout import Acting, from_hard_resets

    env = open_scene(recipe.environment, image=image)
    prior = recipe.prior

    def attempted(name: str, count: int, source: Source, make: Any) -> list[Episode]:
        made = []
        for task in env.tasks:
            acting = Acting(env, make(task.name), source=source)
            made += from_hard_resets(acting, count, recipe.environment.horizon, derive_seed(seed, name), [task.name])
        return made

    try:
        groups = [
            attempted(
                f"policy-{number}",
                attempts,
                Source.POLICY,
                lambda task, n=number: StyledPolicy(expert(task), draw_style(task, derive_seed(seed, "style", n))),
            )
            for number in range(policies + held_out)
        ]
        references = attempted(
            "references", prior.demonstrations, Source.DEMONSTRATION, lambda task: expert(task, prior.noise)
        )
    finally:
        env.close()
    named = {f"policy {number}": group for number, group in enumerate(groups)}
    seen = dict(list(named.items())[:policies])
    return seen, {name: group for name, group in named.items() if name not in seen}, references


def _report(
    recipe: RobotRecipe,
    seeds: Sequence[int],
    source: str,
    counts: Mapping[str, int],
    results: Results,
    shares: Sequence[float],
) -> dict[str, Any]:
    from align.build.robot_scene import scene_name
    from align.build.session import commit

    return {
        "scene": scene_name(recipe.environment),
        "source": source,
        "seeds": list(seeds),
        **counts,
        "success": list(shares),
        "results": results,
        "commit": commit(),
        "cpus": len(os.sched_getaffinity(0)),
        "machine": cpu_name(),
    }


def render(report: Mapping[str, Any]) -> str:
    """The report for people: means over seeds, with Student's 95% intervals."""
    seeds, shares = report["seeds"], report["success"]
    lines = [
        f"{report['scene']}, {report['source']}: {report['policies']} policies learnt from, {report['held_out']} "
        f"others asked about, {report['attempts']} attempts at each task each ({_interval(shares)} of them successes)",
        "",
        "| scored by | same policy above another's | success above failure | rank of policies with their success |",
        "|---|---|---|---|",
    ]
    for name, measures in report["results"].items():
        lines.append(f"| {name} | {' | '.join(_interval(measures[measure]) for measure in MEASURES)} |")
    lines += [
        "",
        f"Accuracy of pairs, AUROC and Spearman's correlation: means over seeds {seeds[0]} to {seeds[-1]}, 95% "
        f"intervals by Student's t; commit {report['commit']}, {report['cpus']} cores, {report['machine']}",
    ]
    return "\n".join(lines)


def _interval(values: Sequence[float | None]) -> str:
    """A dash where the data of a seed could not tell."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean, low, high = over_seeds(known)
    return f"{mean:.3f}" if math.isinf(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
