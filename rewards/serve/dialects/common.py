"""What the dialects share: texts on the wire, and what an item is compared with."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR
from rewards.polar.types import PolarItem, Turns
from rewards.serve.batcher import text_of
from rewards.serve.refusals import Refusal, invalid
from rewards.serve.schema import AS_TEXT, AS_TEXTS
from rewards.serve.types import Rendered, ServeItem

References = Mapping[str, str]
"""Prompts, as POLAR sees them, and the references that the server was started with."""

EXAMPLE: Final = f"2+2?\n4{SEPARATOR}2+2?\nfour{SCORE_TOKEN}"


class Loose(BaseModel):
    """The request of a client that is not ours: what it says beside is not read, what is read is not converted."""

    model_config = ConfigDict(extra="ignore", strict=True)


def _texts_tag(value: Any) -> str:
    return AS_TEXTS if isinstance(value, list) else AS_TEXT


Texts = Annotated[
    Annotated[str, Tag(AS_TEXT)] | Annotated[list[str], Tag(AS_TEXTS)],
    Discriminator(_texts_tag),
    Field(description="pre-rendered POLAR strings: prompt, reference, separator, prompt, candidate, score token"),
]


def rendered(text: str, where: str) -> Rendered:
    """A pre-rendered string; 422 for a text that holds no reference at all."""
    if SEPARATOR not in text:
        raise _nothing(where, f"send a string rendered by POLAR's client, with {SEPARATOR} in it")
    return Rendered(text)


def judged(
    prompt: Turns, output: str, reference: Turns | None, references: References, where: str, wanted: str
) -> ServeItem:
    """The item to score, wherever its reference comes from: the request, the server's own, or the text itself.

    ``output`` counts as pre-rendered only where there is no reference: a policy must not win by writing a rendered
    string of its own. 422 where there is nothing to compare with; ``wanted`` says what the request could hold.
    """
    if not reference:
        reference = references.get(text_of(prompt))
    if reference:
        return PolarItem(prompt, reference, output)
    if SEPARATOR in output:
        return Rendered(output)
    raise _nothing(where, f"{wanted}, start the server with references, or send strings rendered by POLAR's client")


def _nothing(where: str, wanted: str) -> Refusal:
    return invalid(where, f"there is nothing to compare with: {wanted}", "nothing_to_compare")
