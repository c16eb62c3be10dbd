"""The loop: collect, judge, mix, learn, send the weights back. Language models and robots both run through ``run``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.protocols import Collector, Evaluator, Labeller, Learner, Metrics, Mixer, Tracker


@dataclass(frozen=True, slots=True)
class Parts:
    """The six parts of a run."""

    collector: Collector[Any]
    labeller: Labeller[Any, Any]
    mixer: Mixer[Any, Any]
    learner: Learner[Any]
    evaluator: Evaluator
    tracker: Tracker


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen, in loop steps. The first ``offline_steps`` learn from prior data alone."""

    total_steps: int
    offline_steps: int = 0
    sync_every: int = 1
    evaluate_every: int = 0
    checkpoint_every: int = 0

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens every ``every`` steps (0: never) and at the end happens after ``step``."""
        return every > 0 and (step % every == 0 or step == self.total_steps)


def run(parts: Parts, schedule: Schedule, save: Callable[[int], None], start: int = 0) -> None:
    """Runs steps ``start + 1`` to ``schedule.total_steps``; ``save(step)`` is called whenever a checkpoint is due."""
    collector, labeller, mixer, learner = parts.collector, parts.labeller, parts.mixer, parts.learner
    evaluator, tracker, due = parts.evaluator, parts.tracker, schedule.due
    if start == 0 and schedule.evaluate_every:
        with tracker.phase("evaluate"):
            metrics: list[Metrics] = [evaluator.evaluate(0)]
        tracker.log(0, *metrics)
    for step in range(start + 1, schedule.total_steps + 1):
        metrics = []
        if step > schedule.offline_steps:
            with tracker.phase("collect"):
                experience, collected = collector.collect(step)
            with tracker.phase("label"):
                labelled, judged = labeller.label(experience, step)
            mixer.add(labelled)
            metrics += [collected, judged]
        with tracker.phase("learn"):
            metrics += [learner.update(batch) for batch in mixer.batches(step)]
        if due(schedule.sync_every, step):
            with tracker.phase("sync"):
                metrics.append(collector.load_weights(learner.weights()))
        if due(schedule.evaluate_every, step):
            with tracker.phase("evaluate"):
                metrics.append(evaluator.evaluate(step))
        tracker.log(step, *metrics)
        if due(schedule.checkpoint_every, step):
            save(step)
