"""What a reward model with a reference is set against: itself without the right one, and rules without a model."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rewards.polar.text import plain_text
from rewards.polar.types import PolarError, PolarItem, Triple, Turns
from rewards.types import Score

ScoreFunction = Callable[[Sequence[PolarItem]], Sequence[Score]]
"""Items in, as many scores out, in order; an item that cannot be scored is a ``ScoreFailure``."""

_BLOCK = 8  # neighbours by length among which references are exchanged


def prompt_key(triple: Triple) -> str:
    """Triples of one prompt have the same: its text."""
    return plain_text(triple.prompt)


def without_reference(triples: Sequence[Triple]) -> list[Triple]:
    """The same triples with empty references: what the model knows of good answers as such."""
    return [replace(triple, reference="") for triple in triples]


def with_shuffled_references(triples: Sequence[Triple], seed: int = 0) -> list[Triple]:
    """The same triples, each with the reference of another prompt, of similar length: what a model gains from there
    being a reference without reading it.

    Prompts in the order of their reference's length are cut into blocks of eight (the last may be larger), and within
    a block references go round in a random cycle, so that no prompt keeps its own. A prompt's triples that had one
    reference have one again; of a prompt with several, the first is passed on.

    Raises :class:`PolarError` when there are fewer than two prompts.
    """
    references: dict[str, Turns] = {}
    for triple in triples:
        references.setdefault(prompt_key(triple), triple.reference)
    if len(references) < 2:
        raise PolarError("shuffling references needs triples of at least two prompts")
    rng = random.Random(f"{seed}:references")
    prompts = list(references)
    rng.shuffle(prompts)  # prompts with references of equal length stand in no order that means something
    prompts.sort(key=lambda prompt: len(plain_text(references[prompt])))
    given: dict[str, Turns] = {}
    starts = range(0, max(_BLOCK, len(prompts) - len(prompts) % _BLOCK), _BLOCK)
    for start in starts:
        block = prompts[start:] if start == starts[-1] else prompts[start : start + _BLOCK]
        rng.shuffle(block)
        for prompt, donor in zip(block, block[1:] + block[:1], strict=True):
            given[prompt] = references[donor]
    return [replace(triple, reference=given[prompt_key(triple)]) for triple in triples]


def longer(items: Sequence[PolarItem]) -> list[Score]:
    """The more characters the better."""
    return [float(len(plain_text(item.output))) for item in items]


def shorter(items: Sequence[PolarItem]) -> list[Score]:
    """The fewer characters the better."""
    return [-float(len(plain_text(item.output))) for item in items]


def closer_in_length(items: Sequence[PolarItem]) -> list[Score]:
    """The closer in number of characters to the reference the better."""
    return [-float(abs(len(plain_text(item.output)) - len(plain_text(item.reference)))) for item in items]


LENGTH_RULES: Mapping[str, ScoreFunction] = {
    "longer wins": longer,
    "shorter wins": shorter,
    "closer length wins": closer_in_length,
}
"""Rules that read nothing but lengths."""
