"""From a run's data section to the records that it trains on."""

import json
from collections.abc import Sequence
from pathlib import Path

from align.checkpoint import write_atomically
from align.errors import UserError
from align.sft.config import ExploreExecuteData, JsonlData, SFTRun
from align.sft.explore_execute import (
    KEPT,
    Example,
    Ledger,
    PolicyDrafter,
    build_examples,
    drafting_context,
)
from align.sft.records import Record, asked, jsonl_examples, worked_examples
from align.sft.scripted import ChainSumExecutor, ChainSumPlanner
from rewards.verifiers import VerifierScorer
from rollouts.chat import ChatRenderer
from rollouts.engines.base import SamplingParams
from rollouts.engines.hf_engine import HFEngine
from rollouts.models import load_tokenizer
from rollouts.prompts import question_of
from rollouts.types import Prompt

DATA_FILE, LEDGER_FILE = "data.jsonl", "ledger.jsonl"


def prepare(
    config: SFTRun, folder: Path, model_path: Path, train: Sequence[Prompt], exclude: frozenset[str]
) -> tuple[list[Record], dict[str, float]]:
    """The records of a run and how many there are as metrics; made once, and kept in ``data.jsonl`` of its folder.

    None asks a question of ``exclude``, the held-out ones. For explore-execute data ``ledger.jsonl`` beside it says
    what became of every draft. Raises ``UserError`` when there is nothing to train on.
    """
    path = folder / DATA_FILE
    if path.exists():
        records = jsonl_examples(path)
        return records, {"data/examples": len(records)}
    data = config.data
    counts: dict[str, float] = {}
    train = [prompt for prompt in train if question_of(prompt) not in exclude]
    if isinstance(data, JsonlData):
        records = [r for r in jsonl_examples(Path(data.path), data.size) if asked(r) not in exclude]
    elif isinstance(data, ExploreExecuteData):
        examples, ledger = explore_execute_examples(config, data, model_path, train)
        ledger.write(folder / LEDGER_FILE)
        fates = ledger.counts()
        counts = {"data/drafts": sum(fates.values()), "data/dropped": sum(fates.values()) - fates[KEPT]}
        records = [example.record() for example in examples]
        if train and not records:
            raise UserError(
                f"none of {sum(fates.values())} drafts adheres to its plan and is right: {folder / LEDGER_FILE} says "
                "why; use data.source=scripted, or a model that plans"
            )
    else:
        records = worked_examples(train, data)
    if not records:
        raise UserError("nothing to train on outside the held-out questions: give more training data")
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return records, {"data/examples": len(records), **counts}


def explore_execute_examples(
    config: SFTRun, data: ExploreExecuteData, model_path: Path, train: Sequence[Prompt]
) -> tuple[list[Example], Ledger]:
    """:func:`build_examples` with the source that ``data`` names."""
    threshold = config.evaluation.threshold
    scorer = VerifierScorer(threshold=threshold)
    if data.source == "scripted":
        return build_examples(
            train,
            ChainSumPlanner(config.seed),
            ChainSumExecutor(),
            scorer,
            plans_per_prompt=data.plans_per_prompt,
            attempts=1,  # a program that is asked again says the same
            threshold=threshold,
        )
    renderer = ChatRenderer(load_tokenizer(model_path))
    context = drafting_context(renderer, train, data.max_plan_tokens, data.max_execution_tokens)
    engine = HFEngine(model_path, max_context=context, dtype=config.dtype, batch_size=config.evaluation.batch_size)
    try:
        drafter = PolicyDrafter(
            engine,
            renderer,
            SamplingParams(data.max_plan_tokens, renderer.stop_token_ids, temperature=data.temperature),
            max_execution_tokens=data.max_execution_tokens,
            seed=config.seed,
        )
        return build_examples(
            train,
            drafter,
            drafter,
            scorer,
            plans_per_prompt=data.plans_per_prompt,
            attempts=data.attempts,
            threshold=threshold,
        )
    finally:
        engine.close()
