"""Policy discriminators, from their recipes: a corpus, a training, a scaling law."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from align.build import text
from align.build.hosting import connect_to, host_engine
from align.build.session import Session
from align.checkpoint import write_atomically
from align.errors import UserError
from align.learners.build import adapter_config
from align.recipe import PolarCorpusRecipe, PolarRecipe, PolarScalingRecipe
from align.recipe.polar import PolarBackbone, PolarTraining, TextSource, Triples

SUMMARY = "summary.md"


def run_corpus(recipe: PolarCorpusRecipe, session: Session) -> None:
    """Samples and pairs a corpus, or goes on with it; one that is finished is only shown."""
    from cluster.host import HostError
    from rewards.polar.corpus.build import build_corpus
    from rewards.polar.corpus.ranked import write_ranked
    from rewards.similarity import MiniLM
    from rollouts.prompts import question_of

    folder = session.folder.path
    exclude = frozenset(question_of(prompt) for source in recipe.exclude for prompt in text.load_source(source))
    prompts = [prompt for source in recipe.prompts for prompt in text.load_source(source, exclude=exclude)]
    texts = list(chain.from_iterable(_texts(source) for source in recipe.texts))
    config = _corpus_config(recipe)
    session.quiet()
    report = build_corpus(
        config,
        folder,
        prompts=prompts,
        texts=texts,
        open_engine=_engines(recipe, session),
        say=session.say,
        embed=MiniLM().embed,
        progress=lambda done, total: session.say(f"sampled {done} of {total} chunks"),
        recoverable=(HostError,),
    )
    if recipe.ranked is not None:
        counts = write_ranked(config, folder, prompts, texts, **recipe.ranked.model_dump())
        session.say("ranked triples: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    for split, rules in report.shortcuts.items():
        shown = ", ".join(f"{name} {rule.value:.3f} [{rule.low:.3f}, {rule.high:.3f}]" for name, rule in rules.items())
        session.say(f"{split}: {report.triples[split]} triples; rules that must not win: {shown or 'none'}")


def run_training(recipe: PolarRecipe, session: Session) -> None:
    """Trains a policy discriminator to its end, or continues it; one that is finished is only shown."""
    if session.has_summary():
        session.show_finished("start another with run.dir=runs/new")
        return
    from align.polar.train import train
    from align.tracking.report import plot_run

    folder, began = session.folder.path, time.monotonic()
    triples, validation = _triples(recipe.data, recipe.training.validation_size)
    session.say(f"model {recipe.model.path}; {len(triples)} triples to train on, {len(validation)} to validate on")
    model = _start(recipe.model, folder / "start", recipe.seed)
    session.quiet()
    outcome = train(
        _training(recipe.training, recipe.model, recipe.seed),
        model,
        triples,
        validation,
        folder,
        make_tracker=lambda steps: session.tracker(steps, {"model": recipe.model.path, "runs on": "local"}),
    )
    plot_run(folder, recipe.name)
    first, last = outcome.validations[0], outcome.validations[-1]
    lines = [
        f"# {recipe.name}",
        "",
        f"{outcome.pairs} pairs ({outcome.truncated} cut to fit, {outcome.identical} identical), {outcome.tokens} "
        f"tokens, {outcome.steps} updates of {outcome.batch_size} at lr {outcome.lr:.3g}, {outcome.parameters:,} "
        f"parameters, {(time.monotonic() - began) / 60:.1f} minutes.",
        *outcome.notes,
        "",
        "| validation | pairs | loss (nats) | accuracy | margin |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {v.pairs} | {v.loss:.4f} | {v.accuracy:.3f} | {v.margin:.2f} |"
            for name, v in (("before", first), ("after", last))
        ),
        "",
        f"The model: {outcome.model}" + (f"; its adapter: {outcome.adapter}" if outcome.adapter else ""),
        "",
        f"Evaluate it: `align polar eval {outcome.model} --data {recipe.data.path}`",
    ]
    _finish(session, lines)


def run_scaling(recipe: PolarScalingRecipe, session: Session) -> None:
    """Trains every size, or goes on where the folder stands, and fits the laws."""
    if session.has_summary():
        session.show_finished("start another with run.dir=runs/new")
        return
    from align.polar.scaling import run_scaling as scale
    from align.polar.scaling_plot import formula
    from align.tracking.jsonl import JsonlSink
    from align.tracking.tracker import RunTracker
    from rollouts.models import resolve

    folder = session.folder.path
    triples, validation = _triples(recipe.data, recipe.training.validation_size)
    session.say(
        f"{len(recipe.sizes)} sizes of {recipe.model.path} on {len(triples)} triples, {len(validation)} to validate"
    )
    session.quiet()
    scaling = scale(
        recipe.sizes,
        resolve(recipe.model.path),
        triples,
        validation,
        _training(recipe.training, recipe.model, recipe.seed),
        folder,
        dtype=recipe.model.dtype,
        make_tracker=lambda layers, steps: session.progress(
            folder / f"layers-{layers:02d}", steps, {"layers": str(layers)}
        ),
    )
    wandb = session.wandb()
    with RunTracker([JsonlSink(folder), wandb]) as tracker:
        wandb.media("scaling", scaling.picture, len(scaling.sizes))
        for index, size in enumerate(scaling.sizes, start=1):
            tracker.log(
                index,
                {
                    "scaling/parameters": size.parameters,
                    "scaling/non_embedding_parameters": size.non_embedding_parameters,
                    "scaling/flops": size.flops,
                    "eval/loss": size.loss,
                    "eval/accuracy": size.accuracy,
                },
            )
    laws = (("N, all parameters", scaling.by_parameters), ("N, without embeddings", scaling.by_non_embedding),
            ("C, FLOPs", scaling.by_compute))  # fmt: skip
    lines = [
        f"# {recipe.name}",
        "",
        "| layers | parameters | without embeddings | tokens | FLOPs | validation loss | accuracy |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {s.layers} | {s.parameters:,} | {s.non_embedding_parameters:,} | {s.tokens:,} | {s.flops:.3g} "
            f"| {s.loss:.4f} | {s.accuracy:.3f} |"
            for s in scaling.sizes
        ),
        "",
        *(f"- {name}: L = {formula(law, name[0])}" for name, law in laws if law is not None),
        "",
        f"Drawn to {scaling.picture}, beside the paper's L = 0.9 N^-0.0425 and L = 2.4 C^-0.0342.",
    ]
    _finish(session, lines)


def _finish(session: Session, lines: Sequence[str]) -> None:
    """What came of it, on the terminal and in the folder; its file says that the run has ended."""
    written = "\n".join(lines) + "\n"
    session.terminal.write(written)
    session.terminal.flush()
    write_atomically(session.folder.path / SUMMARY, written)


def _engines(recipe: PolarCorpusRecipe, session: Session) -> Callable[[Path], Any]:
    @contextmanager
    def open_engine(model: Path) -> Iterator[Any]:
        # A cluster for each model: its actor, and the memory of its weights, must be gone before the next one comes.
        place: Any = connect_to(recipe.cluster, session.folder.path / "logs")
        try:
            factory = text.engine_factory(recipe.engine, model, recipe.dtype, recipe.seed)
            engine = host_engine(place, recipe.cluster, factory, "engine")
            try:
                yield engine
            finally:
                engine.close()
        finally:
            place.close()

    return open_engine


def _corpus_config(recipe: PolarCorpusRecipe) -> Any:
    from rewards.polar.corpus.config import CorpusConfig, PolicySpec

    return CorpusConfig(
        policies=tuple(PolicySpec(**policy.model_dump()) for policy in recipe.policies),
        tokenizer=recipe.tokenizer or recipe.policies[0].model,
        seed=recipe.seed,
        validation_share=recipe.splits.validation,
        heldout_share=recipe.splits.heldout_policies,
        chunk_prompts=recipe.chunk_prompts,
        **recipe.pairs.model_dump(),
    )


def _texts(source: TextSource) -> Iterator[tuple[str, str]]:
    from rollouts.prompts import hub_records, jsonl_records
    from rollouts.texts import file_texts, record_texts

    match source.type:
        case "file":
            return file_texts(source.path, passage_chars=source.passage_chars, size=source.size)
        case "jsonl":
            records = jsonl_records(Path(source.path))
            return record_texts(records, source=source.path, field=source.field, size=source.size)
        case "hub":
            records = hub_records(source.name, source.split)
            return record_texts(records, source=f"hub:{source.name}", field=source.field, size=source.size)


def _triples(data: Triples, validation_size: int | None) -> tuple[list[Any], list[Any]]:
    """Triples to train on, and to validate on."""
    if data.type == "corpus":
        from rewards.polar.corpus.store import load_triples

        train, validation = (load_triples(Path(data.path), split) for split in ("train", "validation"))
    else:
        from rewards.polar.triples import read_triples

        train = read_triples(Path(data.path))
        validation = read_triples(Path(data.validation))
    return train[: data.size], validation[:validation_size]


def _start(model: PolarBackbone, folder: Path, seed: int) -> Path:
    """The policy discriminator to start from: the one that is named, or the backbone with a head that knows nothing."""
    from rewards.polar.model import build_polar, is_polar, resolve_polar
    from rollouts.models import resolve

    path = resolve_polar(model.path) if model.path.startswith("polar:") else resolve(model.path)
    if is_polar(path):
        if model.layers is not None:
            raise UserError(f"model.layers: {model.path} is a policy discriminator already; leave it out")
        return path
    if not folder.exists():
        build_polar(
            path,
            folder,
            layers=model.layers,
            seed=seed,
            max_length=model.max_length,
            max_response_length=model.max_response_length,
            dtype=model.dtype,
        )
    return folder


def _training(section: PolarTraining, model: PolarBackbone, seed: int) -> Any:
    from align.polar.config import PolarTraining as Config

    settings = section.model_dump(exclude={"lora", "validation_size"})
    return Config(
        **settings,
        lora=adapter_config(section.lora) if section.lora else None,
        adapter=model.adapter,
        dtype=model.dtype,
        max_length=model.max_length,
        max_response_length=model.max_response_length,
        seed=seed,
    )
