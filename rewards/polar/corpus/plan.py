"""Who answers what: prompts cut and put into splits, and two policies drawn for each, all from the seed."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.polar.corpus.config import SPLITS, CorpusConfig, Mode, PolicySpec, Split
from rewards.polar.text import plain_text
from rewards.polar.types import PolarError
from rollouts.types import Message, Prompt


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and its two policies: ``policy_a`` gives the reference and the positive, ``policy_b`` the negative.

    ``source`` is the id of the text or prompt it is from; ``prompt`` what a policy is asked.
    """

    source: str
    mode: Mode
    split: Split
    prompt: Prompt
    policy_a: str
    policy_b: str

    @property
    def text(self) -> str:
        """The prompt as the discriminator reads it: contents joined by line breaks, without any policy's system
        prompt, which is part of the policy."""
        return plain_text(self.prompt.messages)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to be sampled, in order. ``ledger`` counts sources by what became of them; ``digest`` is a
    hash of all prompts and texts."""

    items: tuple[Item, ...]
    ledger: dict[str, int]
    digest: str


def make_plan(
    config: CorpusConfig, prompts: Sequence[Prompt], texts: Iterable[tuple[str, str]], tokenizer: Any
) -> Plan:
    """Draws for every prompt and text (id, text) its split and its policies, the same ones for the same input.

    ``tokenizer`` cuts the texts. No prompt's text is in two splits: of equal texts, and of equal prompts, the first
    counts. Everything is held in memory, about 4 kB a prefix; a larger corpus is made in several folders.
    Raises :class:`PolarError` when a source lacks policies, or a policy a source.
    """
    ledger: Counter[str] = Counter(prompts=len(prompts), texts=0, duplicates=0, too_short=0)
    hasher = hashlib.sha256()
    seen: set[bytes] = set()

    def new(text: str) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen:
            ledger["duplicates"] += 1
            return False
        seen.add(digest)
        return True

    asked: dict[Mode, list[tuple[str, Prompt]]] = {"base": [], "chat": []}
    for prompt in prompts:
        text = plain_text(prompt.messages)
        _hash(hasher, "prompt", prompt.id, [[m.role, m.content] for m in prompt.messages])
        if new(text):
            asked["chat"].append((prompt.id, prompt))
    for source, text in texts:
        ledger["texts"] += 1
        _hash(hasher, "text", source, text)
        if not new(f"text\0{text}"):
            continue
        prefix = cut_prefix(text, tokenizer, config.prefix_tokens, random.Random(f"{config.seed}:cut:{source}"))
        if prefix is None:
            ledger["too_short"] += 1
        elif new(prefix):
            asked["base"].append((source, Prompt(f"text:{source}", (Message("user", prefix),))))
    _check_ids(asked)
    items = [item for mode, sources in asked.items() for item in _draw(config, mode, sources)]
    if not items:
        raise PolarError("the corpus has no prompts: give texts for base policies, or prompts for chat policies")
    return Plan(tuple(items), dict(ledger), hasher.hexdigest())


def cut_prefix(text: str, tokenizer: Any, tokens: tuple[int, int], rng: random.Random) -> str | None:
    """The beginning of ``text``, of uniformly random length in ``tokens`` (shortest, longest), at least one token short
    of the whole; None where the text is too short for that, or the prefix would be blank."""
    if not tokenizer.is_fast:
        raise PolarError("the corpus' tokenizer must be a fast one, that knows where its tokens stand in the text")
    shortest, longest = tokens
    ends = [
        end
        for _, end in tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=longest + 1
        )["offset_mapping"]
    ]
    if len(ends) <= shortest:
        return None
    # The tokens of a character made of several all end where it ends, so that no character is cut.
    prefix = text[: ends[rng.randint(shortest, min(longest, len(ends) - 1)) - 1]]
    return prefix if prefix.strip() and text[len(prefix) :].strip() else None


def _draw(config: CorpusConfig, mode: Mode, sources: Sequence[tuple[str, Prompt]]) -> list[Item]:
    pool = [policy for policy in config.policies if policy.mode == mode]
    what = "texts" if mode == "base" else "prompts"
    if not sources:
        if pool:
            raise PolarError(f"policy {pool[0].name!r} is a {mode} policy, but there are no {what} for it")
        return []
    seen = [policy for policy in pool if not policy.heldout]
    if len(seen) < 2:
        raise PolarError(f"{what} need at least two {mode} policies that are not held out; there are {len(seen)}")
    splits = _splits(config, mode, [source for source, _ in sources], any(policy.heldout for policy in pool))
    items = []
    for source, prompt in sources:
        split = splits[source]
        pair = draw_pair(pool if split == "heldout_policies" else seen, split, _rng(config, mode, source))
        items.append(Item(source, mode, split, prompt, pair[0].name, pair[1].name))
    return items


def draw_pair(pool: Sequence[PolicySpec], split: Split, rng: random.Random) -> tuple[PolicySpec, PolicySpec]:
    """Policies A and B: two different ones of ``pool``, every ordered pair as likely as any other. In the split
    ``heldout_policies`` the pairs are those with at least one held-out policy."""
    while True:
        first, second = rng.sample(pool, 2)
        if split != "heldout_policies" or first.heldout or second.heldout:
            return first, second


def _splits(config: CorpusConfig, mode: Mode, sources: Sequence[str], heldout: bool) -> dict[str, Split]:
    """Exact shares of a seeded order; a mode without held-out policies has no prompts for them."""
    order = list(sources)
    random.Random(f"{config.seed}:split:{mode}").shuffle(order)
    validation = round(config.validation_share * len(order))
    held = round(config.heldout_share * len(order)) if heldout else 0
    split: dict[str, Split] = dict.fromkeys(order, SPLITS[0])
    split |= dict.fromkeys(order[:validation], SPLITS[1])
    split |= dict.fromkeys(order[validation : validation + held], SPLITS[2])
    return split


def _rng(config: CorpusConfig, mode: Mode, source: str) -> random.Random:
    return random.Random(f"{config.seed}:pair:{mode}:{source}")


def _check_ids(asked: dict[Mode, list[tuple[str, Prompt]]]) -> None:
    for sources in asked.values():
        counts = Counter(source for source, _ in sources)
        if twice := next((source for source, count in counts.items() if count > 1), None):
            raise PolarError(f"two different prompts or texts have the id {twice!r}: every id must be its own")


def _hash(hasher: Any, *parts: object) -> None:
    hasher.update(json.dumps(parts).encode())
