"""The trajectory discriminator beside plain distances, on policies that it has not seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.polar.bootstrap import Estimate, cluster_mean
from rewards.success.discriminator import Policies, TrajectoryDiscriminator, TripleDraw
from rewards.success.errors import SuccessError
from rewards.success.ranks import auroc, spearman
from rewards.success.trajectories import BASELINES, Floats, TrajectoryConfig, TrajectoryReader, baseline_scores
from rollouts.envs.types import Episode

Scorer = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True)
class Ranked:
    """How one way of scoring does on held-out policies.

    ``pair_accuracy``: same policy above other policy, chance 0.5; its interval resamples policies. ``success_auroc``:
    with the demonstrations as references, does a success score above a failure. ``policy_spearman``: of a policy's mean
    score with its share of successes. None where the data cannot tell.
    """

    name: str
    pair_accuracy: Estimate
    success_auroc: float | None
    policy_spearman: float | None


def evaluate(
    discriminator: TrajectoryDiscriminator,
    held_out: Policies,
    references: Sequence[Episode],
    *,
    images: TrajectoryConfig | None = None,
    triples: int = 2000,
    seed: int = 0,
) -> tuple[Ranked, ...]:
    """The discriminator, and each baseline on the very features that it reads, standardised alike.

    ``images`` adds the final distance between frozen features of the image. ``references`` are demonstrations; scores
    against those of the same task are meaned. Raises :class:`SuccessError` where a task has no reference.
    """
    episodes = [episode for group in held_out.values() for episode in group]
    owner = np.array([place for place, group in enumerate(held_out.values()) for _ in group])
    task = np.array([episode.task.name for episode in episodes])
    missing = set(task.tolist()) - {episode.task.name for episode in references}
    if missing:
        raise SuccessError(f"no reference for the tasks {', '.join(sorted(missing))}; give a demonstration of each")
    drawn = TripleDraw(owner, task, seed)(triples)
    rows, demonstrations = discriminator.reader.read(episodes), discriminator.reader.read(references)
    scorers: dict[str, tuple[Scorer, Floats, Floats]] = {
        "discriminator": (discriminator.scores, rows, demonstrations)
    } | {name: (_baseline(name), rows, demonstrations) for name in BASELINES}
    if images is not None:
        reader = TrajectoryReader(images)
        pictures = reader.standardise(references)
        scorers["final image L2"] = (_baseline("final L2"), reader.read(episodes), pictures)
    success = np.array([episode.succeeded for episode in episodes])
    of_task = {name: np.array([e.task.name == name for e in references]) for name in set(task.tolist())}
    results = []
    for name, (score, candidates, shown) in scorers.items():
        own = _mean_scores(score, candidates, shown, task.tolist(), of_task)
        policies = range(int(owner.max()) + 1)
        results.append(
            Ranked(
                name,
                _pair_accuracy(score, candidates, drawn, owner.tolist()),
                auroc(own, success),
                spearman([own[owner == p].mean() for p in policies], [success[owner == p].mean() for p in policies]),
            )
        )
    return tuple(results)


def ranking_table(results: Sequence[Ranked]) -> str:
    """The results as a Markdown table."""
    lines = ["| scored by | pair accuracy | AUROC of success | Spearman with policy success |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for r in results:
        accuracy = f"{r.pair_accuracy.value:.3f} [{r.pair_accuracy.low:.3f}, {r.pair_accuracy.high:.3f}]"
        others = ["-" if value is None else f"{value:.3f}" for value in (r.success_auroc, r.policy_spearman)]
        lines.append(f"| {r.name} | {accuracy} | {others[0]} | {others[1]} |")
    return "\n".join(lines) + "\n"


def _baseline(name: str) -> Scorer:
    return lambda reference, candidates: baseline_scores(name, reference, candidates)


def _mean_scores(
    score: Scorer, candidates: Floats, shown: Floats, task: Sequence[str], of_task: Mapping[str, np.ndarray]
) -> np.ndarray:
    made = np.zeros(len(candidates))
    for name, mask in of_task.items():
        places = np.array([place for place, own in enumerate(task) if own == name])
        made[places] = np.mean([score(reference, candidates[places]) for reference in shown[mask]], axis=0)
    return made


def _pair_accuracy(score: Scorer, rows: Floats, drawn: np.ndarray, owner: Sequence[int]) -> Estimate:
    right = np.zeros(len(drawn))
    for reference in np.unique(drawn[:, 0]):
        chosen = np.flatnonzero(drawn[:, 0] == reference)
        same, other = (score(rows[reference], rows[drawn[chosen, side]]) for side in (1, 2))
        right[chosen] = np.where(same == other, 0.5, same > other)
    return cluster_mean(right, [owner[reference] for reference in drawn[:, 0]], bounds=(0.0, 1.0))
