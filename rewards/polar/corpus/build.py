"""A pre-training corpus from start to end: plan, sample, clean, match, store, describe."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.polar.corpus.card import Card, make_card, write_card
from rewards.polar.corpus.clean import Cleaned, clean, count_cleaning
from rewards.polar.corpus.config import SPLITS, WRAPPERS, CorpusConfig, Split
from rewards.polar.corpus.identity import claim
from rewards.polar.corpus.match import Candidates, Matched, distinct, match_lengths
from rewards.polar.corpus.plan import Item, Plan, make_plan
from rewards.polar.corpus.sample import Chunk, OpenEngine, RawRow, chunks_of, raw_rows, sample_all
from rewards.polar.corpus.shortcuts import Accuracy, Embedder
from rewards.polar.corpus.store import Row, write_shards
from rewards.polar.types import PolarError
from rollouts.models import load_tokenizer, resolve
from rollouts.types import Prompt

Groups = Sequence[Sequence[Chunk]]


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What was made. ``before`` and ``shortcuts`` are, by split and rule, the accuracies of the rules of
    :mod:`rewards.polar.corpus.shortcuts` without and with matching; ``ledger`` counts the prompts by what became of
    them, ``cleaning`` each policy's samples."""

    folder: Path
    triples: dict[Split, int]
    before: dict[Split, dict[str, Accuracy]]
    shortcuts: dict[Split, dict[str, Accuracy]]
    ledger: dict[str, int]
    cleaning: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class _Survey:
    candidates: list[Candidates]
    cleaning: dict[str, Counter[str]]
    too_long: int


def build_corpus(
    config: CorpusConfig,
    folder: Path,
    *,
    prompts: Sequence[Prompt],
    texts: Iterable[tuple[str, str]],
    open_engine: OpenEngine,
    say: Callable[[str], None],
    embed: Embedder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    recoverable: tuple[type[Exception], ...] = (),
) -> CorpusReport:
    """Builds the corpus in ``folder``, or goes on with it; ends at once where it is finished, with the same report.

    Chat policies answer ``prompts``; base policies continue ``texts`` (id and text), cut at a random place.
    ``open_engine`` serves the model of a folder; an engine is rebuilt after an ``EngineError``, and its call repeated,
    also after the exceptions ``recoverable``. ``embed`` gives the data card the accuracy of embeddings. ``progress`` is
    told how many chunks of how many are sampled.

    Raises :class:`PolarError` when the configuration cannot work, the folder holds another corpus, or no triple is
    left; what the engine raises passes through, and the next call goes on behind the last whole chunk.
    """
    tokenizer = load_tokenizer(resolve(config.tokenizer))
    plan = make_plan(config, prompts, texts, tokenizer)
    claim(folder, config, plan.digest)
    say(f"{len(plan.items)} prompts for {len(config.policies)} policies in {folder}")
    groups = chunks_of(config, plan.items, folder)
    sample_all(config, groups, open_engine, say, progress, recoverable)
    survey = _survey(config, plan, groups, tokenizer)
    matched = match_lengths(survey.candidates, config.length_tolerance, config.seed)
    ledger = {**plan.ledger, "too_long": survey.too_long, **matched.ledger}
    if not matched.chosen:
        gone = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ledger.items() if count)
        raise PolarError(f"{folder}: no triple is left ({gone}): give more prompts, or a wider length_tolerance")
    counts = Counter(item.split for item in plan.items if _key(item) in matched.chosen)
    rows = _rows(config, plan, groups, matched, tokenizer)
    write_shards(folder, rows, {split: counts[split] for split in SPLITS}, config.shard_rows, config.tokenizer)
    card = make_card(config, folder, ledger, survey.cleaning, _unmatched(plan, matched), embed)
    write_card(folder, card)
    say(f"{len(matched.chosen)} triples; the data card is {folder / 'card.md'}")
    return _report(folder, card)


def _survey(config: CorpusConfig, plan: Plan, groups: Groups, tokenizer: Any) -> _Survey:
    """Cleans everything once, and keeps what matching needs: lengths, and which texts are distinct."""
    survey = _Survey([], {policy.name: Counter() for policy in config.policies}, 0)
    too_long = 0
    for item, row_a, row_b in raw_rows(plan.items, groups):
        if not (row_a.samples and row_b.samples):
            too_long += 1
            continue
        sides = []
        for policy, row in ((item.policy_a, row_a), (item.policy_b, row_b)):
            cleaned = [clean(s.text, s.finish, item.mode, config.loops) for s in row.samples]
            count_cleaning(cleaned, survey.cleaning[policy])
            sides.append([c.text if isinstance(c, Cleaned) else None for c in cleaned])
        ours, theirs = distinct(*sides)
        for policy, texts, kept in zip((item.policy_a, item.policy_b), sides, (ours, theirs), strict=True):
            survey.cleaning[policy]["identical"] += sum(text is not None for text in texts) - len(kept)
        lengths = _lengths([*(sides[0][i] for i in ours), *(sides[1][i] for i in theirs)], tokenizer)
        survey.candidates.append(
            Candidates(
                key=_key(item),
                group=f"{item.split}/{item.mode}",
                positives=tuple(zip(ours, lengths, strict=False)),
                negatives=tuple(zip(theirs, lengths[len(ours) :], strict=True)),
            )
        )
    return _Survey(survey.candidates, survey.cleaning, too_long)


def _rows(config: CorpusConfig, plan: Plan, groups: Groups, matched: Matched, tokenizer: Any) -> Iterator[Row]:
    """The chosen triples with their texts, which are cleaned again rather than held in memory."""

    def text(item: Item, row: RawRow, index: int) -> str:
        sample = row.samples[index]
        cleaned = clean(sample.text, sample.finish, item.mode, config.loops)
        assert isinstance(cleaned, Cleaned), "a sample that was matched was kept"
        return cleaned.text

    for item, row_a, row_b in raw_rows(plan.items, groups):
        option = matched.chosen.get(_key(item))
        if option is None:
            continue
        yield Row(
            prompt=item.text,
            reference=text(item, row_a, option.reference),
            chosen=text(item, row_a, option.chosen),
            rejected=text(item, row_b, option.rejected),
            wrapper=WRAPPERS[item.mode],
            policy_a=item.policy_a,
            policy_b=item.policy_b,
            mode=item.mode,
            split=item.split,
            source=item.source,
            prompt_tokens=_lengths([item.text], tokenizer)[0],
            reference_tokens=option.lengths[0],
            chosen_tokens=option.lengths[1],
            rejected_tokens=option.lengths[2],
        )


def _lengths(texts: Sequence[str | None], tokenizer: Any) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def _key(item: Item) -> str:
    return f"{item.mode}:{item.source}"


def _unmatched(plan: Plan, matched: Matched) -> dict[Split, list[tuple[int, int, int]]]:
    """Lengths of each split's triples as they would be without matching."""
    lengths: dict[Split, list[tuple[int, int, int]]] = {split: [] for split in SPLITS}
    for item in plan.items:
        if option := matched.unmatched.get(_key(item)):
            lengths[item.split].append(option.lengths)
    return lengths


def _report(folder: Path, card: Card) -> CorpusReport:
    return CorpusReport(
        folder=folder,
        triples={split: part.triples for split, part in card.splits.items()},
        before={split: part.before for split, part in card.splits.items()},
        shortcuts={split: part.shortcuts for split, part in card.splits.items()},
        ledger=card.ledger,
        cleaning=card.cleaning,
    )
