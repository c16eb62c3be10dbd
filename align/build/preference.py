"""From a preference recipe to the parts of its loop, and the only place that switches on their ``type``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align import recipe as schema
from align.build.session import Session
from align.recipe.rollout import Prompts

# An actor's methods run beside its main thread. glibc gives such a thread an arena of small heaps, maps large buffers
# afresh and returns everything at every chance: page faults then take a third of a training step on the CPU.
ACTOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
}


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

    def run(self) -> None:
        """All of it; a run that is finished is only shown."""
        checkpoint, total = self.folder.latest(), self.recipe.schedule.total_steps
        if checkpoint and int(checkpoint.name.removeprefix("step-")) >= total and self.session.has_summary():
            self.session.show_finished("raise schedule.total_steps to go on")
            return
        self.prepare()
        self.execute()
        self.summarise()

    def prepare(self) -> None:
        from rollouts.chat import ChatRenderer
        from rollouts.collector import EngineSupervisor, check_lengths
        from rollouts.engines.base import SamplingParams
        from rollouts.models import load_tokenizer, resolve

        recipe = self.recipe
        self.session.say(f"model {recipe.model.path}")
        self.model_path = resolve(recipe.model.path)
        self.renderer = ChatRenderer(load_tokenizer(self.model_path), recipe.rollout.system_prompt)
        self.heldout, self.train = load_prompts(recipe.prompts)
        rollout = recipe.rollout
        self.params = SamplingParams(
            max_new_tokens=rollout.max_new_tokens,
            stop_token_ids=self.renderer.stop_token_ids,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            min_new_tokens=rollout.min_new_tokens,
        )
        check_lengths([*self.train, *self.heldout], self.renderer, self.params, rollout.engine.max_context)
        self.session.quiet()
        self.cluster = self._connect()
        self.session.stack.callback(self.cluster.close)
        self.session.say(f"starting {rollout.engine.type} and the learner ({recipe.cluster.type})")
        engine = self._engine()
        self.supervisor = EngineSupervisor(engine, self._recoverable())
        self.learner = self._learner()
        self.session.stack.callback(self.cluster.apply, self.learner, _close_learner)
        self.parts = self._parts()

    def execute(self) -> None:
        from align.loop import Schedule
        from align.loop import run as loop

        schedule = self.recipe.schedule
        stateful = {name: getattr(self.parts, name) for name in self.parts.__dataclass_fields__}
        checkpoint = self.folder.latest()
        start = 0
        if checkpoint is not None:
            start = self.folder.load(checkpoint, stateful, self.cluster.apply)
            # The engine was built with the model's own weights; it gets those it had at the checkpoint.
            if start < schedule.total_steps:
                self.parts.collector.load_weights(self.learner.weights())

        def save(step: int) -> None:
            with self.parts.tracker.phase("checkpoint"):
                self.folder.save(step, stateful, self.cluster.apply, schedule.keep_checkpoints)

        with self.parts.tracker:
            loop(
                self.parts,
                Schedule(
                    total_steps=schedule.total_steps,
                    offline_steps=schedule.offline_steps,
                    sync_every=schedule.sync_every,
                    evaluate_every=schedule.evaluate_every,
                    checkpoint_every=schedule.checkpoint_every,
                ),
                save,
                start,
            )
            policy = self.folder.path / "policy"
            if start < schedule.total_steps or not policy.exists():
                self.cluster.apply(self.learner, _save_policy, str(self.model_path), str(policy.resolve()))

    def _connect(self) -> Any:
        from cluster.host import connect

        cluster, logs = self.recipe.cluster, self.folder.path / "logs"
        if cluster.type == "local":
            return connect("local", log_dir=logs)
        address = None if cluster.address == "auto" else cluster.address
        return connect("ray", address=address, num_cpus=cluster.num_cpus, log_dir=logs)

    def _recoverable(self) -> tuple[type[Exception], ...]:
        from cluster.host import HostError

        return (HostError,)

    def _engine(self) -> Any:
        from rollouts.engines.group import EngineGroup

        count = self.recipe.rollout.engines
        engines = [
            self._host(engine_factory(self.recipe, self.model_path), f"engine-{i}", "engine") for i in range(count)
        ]
        return engines[0] if count == 1 else EngineGroup(engines)

    def _learner(self) -> Any:
        from align.learners.build import learner_factory

        factory = learner_factory(self.recipe, self.model_path, self._probe_ids())
        if self.recipe.cluster.type == "ray" and not self.recipe.cluster.learner_actor:
            return factory()
        return self._host(factory, "learner", "learner")

    def _host(self, factory: Callable[[], Any], name: str, role: str) -> Any:
        from cluster.host import Resources

        cluster = self.recipe.cluster
        if cluster.type == "local":
            return self.cluster.host(factory, name=name)
        resources = cluster.engine_resources if role == "engine" else cluster.learner_resources
        return self.cluster.host(
            factory,
            name=name,
            resources=Resources(resources.num_cpus, resources.num_gpus),
            deadline_s=cluster.deadline_s,
            start_deadline_s=cluster.start_deadline_s,
            env=ACTOR_ENVIRONMENT,
            # A learner that comes back has lost what it learned: the run ends, and continues from its checkpoint.
            max_restarts=3 if role == "engine" else 0,
        )

    def _probe_ids(self) -> tuple[int, ...]:
        """The first problem with its answer: a sequence of the kind that the run is about."""
        prompt = self.train[0]
        answer = self.renderer.answer_ids(prompt.reference or prompt.answer or "yes")
        return (*self.renderer.prompt_ids(prompt), *answer)[: self.recipe.rollout.engine.max_context - 1]

    def _parts(self) -> Any:
        from dataclasses import replace

        from align.buffers.pairs import PairMixer
        from align.evaluate import TextEvaluator
        from align.loop import Parts
        from align.tracking.samples import WatchedLabeller, WatchedScorer
        from rewards.labeller import LabelConfig, PairLabeller
        from rewards.verifiers import VerifierScorer
        from rollouts.collector import CollectConfig, TextCollector
        from rollouts.prompts import PromptStream

        recipe = self.recipe
        rollout, label, console = recipe.rollout, recipe.label, recipe.tracking.console
        scorer = VerifierScorer(recipe.reward.extract, recipe.reward.threshold)
        watched = WatchedScorer(scorer)
        tracker = self.session.tracker(
            recipe.schedule.total_steps, {"model": recipe.model.path, "runs on": recipe.cluster.type}
        )
        self.evaluator = TextEvaluator(
            self.supervisor,
            self.heldout,
            self.renderer,
            scorer,
            replace(self.params, temperature=recipe.evaluation.temperature, top_p=1.0, top_k=0),
            samples_per_prompt=recipe.evaluation.samples_per_prompt,
            threshold=recipe.reward.threshold,
            seed=recipe.seed,
        )
        return Parts(
            collector=TextCollector(
                self.supervisor,
                PromptStream(self.train, recipe.seed),
                self.renderer,
                self.params,
                CollectConfig(
                    prompts_per_step=rollout.prompts_per_step,
                    samples_per_prompt=rollout.samples_per_prompt,
                    reference_samples=rollout.reference_samples,
                    reference_ahead=rollout.reference_ahead,
                    reference_uri=f"file:{self.model_path / 'model.safetensors'}",
                    seed=recipe.seed,
                ),
            ),
            labeller=WatchedLabeller(
                PairLabeller(
                    watched,
                    LabelConfig(
                        label=label.type,
                        temperature=label.temperature if label.type == "bradley_terry" else 1.0,
                        pairing=label.pairing,
                        ties=label.ties,
                        seed=recipe.seed,
                    ),
                ),
                watched,
                tracker.samples,
                every=console.table_every,
                limit=console.table_rows,
            ),
            mixer=PairMixer(
                batch_pairs=recipe.mixer.batch_pairs,
                replay_ratio=recipe.mixer.replay_ratio,
                capacity=recipe.mixer.capacity,
                seed=recipe.seed,
            ),
            learner=self.learner,
            evaluator=self.evaluator,
            tracker=tracker,
        )

    def summarise(self) -> None:
        """The end of a run, for people and for programs."""
        from align.tracking.console import terminal_console
        from align.tracking.report import Outcome, plot_run, summary

        path, total = self.folder.path, self.recipe.schedule.total_steps
        results = self.evaluator.results
        both = [
            (b, a)
            for b, a in zip(results.get(0, []), results.get(total, []), strict=False)
            if b is not None and a is not None
        ]
        plot_run(path, self.recipe.name)
        summary(
            Outcome(
                recipe=self.session.command,
                model=self.recipe.model.path,
                folder=path,
                steps=total,
                minutes=float(self.parts.tracker.state_dict()["elapsed_s"]) / 60,
                before=[b for b, _ in both] or None,
                after=[a for _, a in both] or None,
                next_steps={
                    "train longer": self.session.command_with({"schedule.total_steps": str(2 * total)}),
                    "start from it": self.session.command_with({"model.path": f"{path}/policy", "run.dir": f"{path}-2"}),
                },
            ),
            terminal_console(self.session.terminal),
        )

def engine_factory(recipe: schema.PreferenceRecipe, model_path: Path) -> Callable[[], Any]:
    """What builds the recipe's engine, in whichever process it is called."""
    engine, dtype, seed = recipe.rollout.engine, recipe.model.dtype, recipe.seed
    if engine.type == "vllm":
        options = engine.model_dump(exclude={"type"})

        def build_vllm() -> Any:
            from rollouts.engines.vllm_engine import VLLMEngine

            return VLLMEngine(model_path, dtype=dtype, seed=seed, **options)

        return build_vllm

    options = engine.model_dump(exclude={"type"})

    def build_transformers() -> Any:
        from rollouts.engines.hf_engine import HFEngine

        return HFEngine(model_path, dtype=dtype, **options)

    return build_transformers


def load_prompts(prompts: Prompts) -> tuple[list[Any], list[Any]]:
    """Held-out prompts, and training prompts none of which ask the same."""
    from rollouts.prompts import question_of

    heldout = _load(prompts.heldout, heldout=True)
    return heldout, _load(prompts.train, exclude=frozenset(question_of(p) for p in heldout))


def _load(source: Any, *, heldout: bool = False, exclude: frozenset[str] = frozenset()) -> list[Any]:
    from rollouts.prompts import gym_prompts, hub_records, jsonl_records, record_prompts

    if source.type == "gym":
        return gym_prompts(source.task, size=source.size, seed=source.seed, config=source.config, exclude=exclude)
    jsonl = source.type == "jsonl"
    return record_prompts(
        jsonl_records(Path(source.path)) if jsonl else hub_records(source.name, source.split),
        source=source.path if jsonl else f"hub:{source.name}",
        prompt_field=source.prompt_field,
        reference_field=source.reference_field,
        answer_field=source.answer_field,
        size=source.size,
        exclude=exclude,
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


def _close_learner(learner: Any) -> None:
    learner.close()


