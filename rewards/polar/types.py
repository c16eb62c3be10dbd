"""What a policy discriminator judges: items to score, and triples to learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rollouts.types import Message

Wrapper = Literal["sft", "pretrain"]
"""``sft``: question and answer, a line break between. ``pretrain``: a text and its continuation, nothing between."""

Turns = str | Sequence[Message]
"""A text as it is, or chat messages: contents joined by line breaks, roles dropped (POLAR has no chat template)."""


class PolarError(ValueError):
    """A policy discriminator cannot be built, loaded or fed; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class PolarItem:
    """A candidate ``output`` to be scored by how much its policy looks like that of ``reference``, given ``prompt``."""

    prompt: Turns
    reference: Turns
    output: Turns
    wrapper: Wrapper = "sft"


@dataclass(frozen=True, slots=True)
class Rendered:
    """An item that POLAR's own client has rendered already: one separator inside, the score token at the end."""

    text: str


@dataclass(frozen=True, slots=True)
class Triple:
    """A reference, and two candidates of which ``chosen`` should score higher relative to it.

    In pre-training ``reference`` and ``chosen`` are two samples of one policy, and ``rejected`` is one of another
    (arXiv 2507.05197, equation 7). In fine-tuning the three are ranked: the best is the reference (equation 8).
    ``metadata`` says where they are from: category, policies, mode.
    """

    prompt: Turns
    reference: Turns
    chosen: Turns
    rejected: Turns
    wrapper: Wrapper = "sft"
    metadata: Mapping[str, str] = field(default_factory=dict)
