"""A run that learns from preferences: its parts are built, go through the loop, and say what came of it."""

import json
import os
from pathlib import Path
from typing import Any

from align import recipe as schema
from align.absent import NoEvaluation, NoExperience
from align.build import text
from align.build.hosting import connect_to, end_learner, host_engine, host_learner
from align.build.judging import Judging
from align.build.mixing import mixer as build_mixer
from align.build.session import Session
from align.checkpoint import write_atomically
from align.recipe.rollout import Rollout


class PreferenceRun:
    """A run that learns from preferences.

    ``prepare`` builds the parts, cheapest first, so that mistakes show early; ``execute`` goes through the loop;
    ``summarise`` says what came of it.
    """

    def __init__(self, recipe: schema.PreferenceRecipe, session: Session) -> None:
        self.recipe, self.session = recipe, session
        self.folder = session.folder
        self.cluster: Any = None
        self.learner: Any = None
        self.parts: Any = None
        self.sampling: text.Sampling | None = None
        self.heldout: Any = None
        self.best: Any = None

    def run(self) -> None:
        """All of it; a run that is finished is only shown."""
        checkpoint, total = self.folder.latest(), self.recipe.schedule.total_steps
        if checkpoint and int(checkpoint.name.removeprefix("step-")) >= total and self.session.has_summary():
            both = "" if self.recipe.is_online else " and schedule.offline_steps"
            self.session.show_finished(f"raise schedule.total_steps{both} to go on")
            return
        self.prepare()
        self.execute()
        self.summarise()

    def prepare(self) -> None:
        from rollouts.chat import ChatRenderer
        from rollouts.models import load_tokenizer, resolve

        recipe, session = self.recipe, self.session
        session.say(f"model {recipe.model.path}")
        self.model_path = resolve(recipe.model.path)
        rollout = recipe.rollout
        renderer = ChatRenderer(load_tokenizer(self.model_path), rollout.system_prompt if rollout else None)
        if recipe.prompts is not None and rollout is not None:
            self.sampling = text.sampling(recipe.prompts, rollout, renderer)
        mixer = build_mixer(recipe, renderer, self.sampling.heldout if self.sampling else [], session.say)
        tracker = session.tracker(
            recipe.schedule.total_steps, {"model": recipe.model.path, "runs on": recipe.cluster.type}
        )
        judging = Judging(recipe, session.stack)
        labeller: Any = NoExperience()
        if recipe.label is not None:
            console = recipe.tracking.console
            show = text.Show(tracker.samples, console.table_every, console.table_rows)
            labeller = text.labeller(recipe.label, judging.train, recipe.seed, show, session.stack)
        session.quiet()
        self.cluster = connect_to(recipe.cluster, self.folder.path / "logs")
        session.stack.callback(self.cluster.close)
        starting = [
            *([rollout.engine.type] if rollout else []),
            *(["the reward model"] if judging.hosts_a_model else []),
        ]
        session.say(f"starting {', '.join([*starting, 'the learner'])} ({recipe.cluster.type})")
        supervisor = self._supervisor(rollout) if rollout else None
        judging.open(self.cluster)
        self.learner = host_learner(self.cluster, recipe.cluster, self._learner_factory())
        session.stack.callback(end_learner, self.cluster, self.learner)
        self.parts = self._parts(supervisor, judging, labeller, mixer, tracker)

    def execute(self) -> None:
        from align.build import looping

        schedule = self.recipe.schedule
        start = looping.restore(self.parts, self.folder, self.cluster)
        # The engine was built with the model's own weights; it gets those it had at the checkpoint.
        if 0 < start < schedule.total_steps:
            self.parts.collector.load_weights(self.learner.weights())
        with self.parts.tracker:
            looping.run(self.parts, schedule, self.folder, self.cluster, start)
            self._save_policy("policy")
            if self.recipe.learner.intruders:
                report = self.cluster.apply(self.learner, _intruders)
                write_atomically(self.folder.path / "intruders.json", json.dumps(report, indent=2) + "\n")

    def _supervisor(self, rollout: Rollout) -> Any:
        from cluster.host import HostError
        from rollouts.collector import EngineSupervisor
        from rollouts.engines.group import EngineGroup

        recipe = self.recipe
        factory = text.engine_factory(rollout.engine, self.model_path, recipe.model.dtype, recipe.seed)
        engines = [
            host_engine(self.cluster, recipe.cluster, factory, f"engine-{index}") for index in range(rollout.engines)
        ]
        return EngineSupervisor(engines[0] if len(engines) == 1 else EngineGroup(engines), (HostError,))

    def _learner_factory(self) -> Any:
        from align.learners.build import learner_factory

        recipe, rollout = self.recipe, self.recipe.rollout
        probe = text.probe_ids(self.sampling, rollout.engine.max_context) if self.sampling and rollout else ()
        return learner_factory(recipe, self.model_path, probe)

    def _parts(self, supervisor: Any, judging: Judging, labeller: Any, mixer: Any, tracker: Any) -> Any:
        from align.evaluate import BestIterate
        from align.loop import Parts

        recipe, sampling = self.recipe, self.sampling
        collector: Any = NoExperience()
        evaluator: Any = NoEvaluation()
        if sampling is not None and recipe.rollout is not None:
            collector = text.collector(recipe, recipe.rollout, sampling, supervisor, self.model_path)
            if recipe.reward is not None:
                self.heldout = text.evaluator(recipe, judging.checker, judging.watched, sampling, supervisor)
                evaluator = self.best = BestIterate(self.heldout, lambda _: self._save_policy("policy_best"))
        return Parts(collector, labeller, mixer, self.learner, evaluator, tracker)

    def _save_policy(self, name: str) -> None:
        folder = (self.folder.path / name).resolve()
        self.cluster.apply(self.learner, _save_policy, str(self.model_path), str(folder))

    def summarise(self) -> None:
        """The end of a run, for people and for programs."""
        from align.tracking.console import terminal_console
        from align.tracking.report import Outcome, plot_run, summary
        from align.tracking.watch import plot_watch

        path, total = self.folder.path, self.recipe.schedule.total_steps
        results = self.heldout.results if self.heldout else {}
        both = [
            (b, a)
            for b, a in zip(results.get(0, []), results.get(total, []), strict=False)
            if b is not None and a is not None
        ]
        longer = {"schedule.total_steps": str(2 * total)}
        if not self.recipe.is_online:
            longer["schedule.offline_steps"] = str(2 * total)
        plot_run(path, self.recipe.name)
        plot_watch(path, self.recipe.name)
        summary(
            Outcome(
                recipe=self.session.command,
                model=self.recipe.model.path,
                folder=path,
                steps=total,
                minutes=float(self.parts.tracker.state_dict()["elapsed_s"]) / 60,
                before=[b for b, _ in both] or None,
                after=[a for _, a in both] or None,
                best=None if self.best is None or self.best.step is None else (self.best.step, self.best.value),
                next_steps={
                    "train longer": self.session.command_with(longer),
                    "start from it": self.session.command_with(
                        {"model.path": f"{path}/policy", "run.dir": f"{path}-2"}
                    ),
                },
            ),
            terminal_console(self.session.terminal),
        )


def _save_policy(learner: Any, model_path: str, folder: str) -> None:
    """The trained model beside its tokenizer, whole or absent."""
    import shutil

    from rollouts.models import load_tokenizer

    temporary = Path(folder + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    learner.save_model(temporary)
    load_tokenizer(Path(model_path)).save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _intruders(learner: Any) -> Any:
    from dataclasses import asdict

    report = learner.intruders()
    return {**asdict(report), **report.metrics(), "highest": report.highest}
