"""Triples for fine-tuning from a corpus's own samples: where prompts have answers, right ones rank above wrong ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rewards.polar.corpus.config import SPLITS, CorpusConfig, Split
from rewards.polar.corpus.plan import Item, make_plan
from rewards.polar.corpus.sample import RawRow, chunks_of, raw_rows
from rewards.polar.edited import edited_triples
from rewards.polar.triples import answer_triples, write_triples
from rollouts.models import load_tokenizer, resolve
from rollouts.types import Completion, Origin, Prompt, Rollout

RANKED_FOLDER = "ranked"


def write_ranked(
    config: CorpusConfig,
    folder: Path,
    prompts: Sequence[Prompt],
    texts: Iterable[tuple[str, str]],
    *,
    per_prompt: int,
    edited_per_prompt: int = 0,
) -> dict[str, int]:
    """Writes ``ranked/{split}.jsonl`` beside a corpus that is sampled; returns the number of triples of each split.

    The reference is the prompt's worked answer, chosen a right sample and rejected a wrong one
    (:func:`rewards.polar.triples.answer_triples`); beside them come those of
    :func:`rewards.polar.edited.edited_triples`. The same policies are in the same splits as in the corpus.
    Samples are taken as they were drawn, without the cleaning of pre-training: a reward model in a loop sees raw ones.
    A split without a triple has no file.
    """
    plan = make_plan(config, prompts, texts, load_tokenizer(resolve(config.tokenizer)))
    rollouts: dict[Split, list[Rollout]] = {split: [] for split in SPLITS}
    policies: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for item, *rows in raw_rows(plan.items, chunks_of(config, plan.items, folder)):
        if item.mode == "chat" and item.prompt.answer is not None and item.prompt.reference is not None:
            for policy, row in zip((item.policy_a, item.policy_b), rows, strict=True):
                rollouts[item.split].append(_rollout(item, row))
                policies[item.split].append(policy)
    counts: dict[str, int] = {}
    for split in SPLITS:
        path = folder / RANKED_FOLDER / f"{split}.jsonl"
        path.unlink(missing_ok=True)
        triples, _ = answer_triples(rollouts[split], per_prompt=per_prompt, policies=policies[split])
        if edited_per_prompt:
            triples += edited_triples(
                rollouts[split], per_prompt=edited_per_prompt, seed=config.seed, policies=policies[split]
            )
        if triples:
            write_triples(path, triples)
        counts[split] = len(triples)
    return counts


def _rollout(item: Item, row: RawRow) -> Rollout:
    completions = tuple(Completion((), (), s.text.strip(), s.finish, Origin.DATASET, 0) for s in row.samples)
    return Rollout(item.prompt, (), completions)
