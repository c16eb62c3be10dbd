"""The native wire contract, as pydantic models: what a request may hold, and what an answer looks like.

Unknown fields are refused: a misspelt ``reference`` must not pass for a missing one. Requests become the items that the
service takes; answers are built as plain dictionaries, which is quick for ten thousand items, and their models here
document them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rewards.polar.types import PolarItem, Turns, Wrapper
from rewards.serve.types import Rendered, ServeItem
from rollouts.types import Message

AS_TEXT, AS_TEXTS, AS_MESSAGES, AS_TRIPLE = "as text", "as texts", "as messages", "as triple"
AS_RENDERED, AS_INPUT, AS_DOCUMENT = "as rendered", "as input", "as document"
TAGS = frozenset({AS_TEXT, AS_TEXTS, AS_MESSAGES, AS_TRIPLE, AS_RENDERED, AS_INPUT, AS_DOCUMENT})
"""What pydantic puts into the place of an error for the branch of a union that it tried; no part of the place."""


class Strict(BaseModel):
    """Nothing is converted, nothing unknown is let pass."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WireMessage(BaseModel):
    """One turn of a chat; fields other than these two are not read."""

    model_config = ConfigDict(strict=True)

    role: str
    content: str


def _turns_tag(value: Any) -> str:
    return AS_MESSAGES if isinstance(value, list) else AS_TEXT


def _item_tag(value: Any) -> str:
    return AS_RENDERED if isinstance(value, dict) and "text" in value else AS_TRIPLE


# One branch is chosen before it is checked: errors then speak of that branch alone.
WireTurns = Annotated[
    Annotated[str, Tag(AS_TEXT)] | Annotated[list[WireMessage], Tag(AS_MESSAGES)], Discriminator(_turns_tag)
]


class TripleItem(Strict):
    """A candidate ``output`` to score by how much it looks like ``reference``, given ``prompt``."""

    prompt: WireTurns
    reference: WireTurns
    output: WireTurns
    wrapper: Wrapper = "sft"
    id: str | None = None

    def item(self) -> ServeItem:
        return PolarItem(turns(self.prompt), turns(self.reference), turns(self.output), self.wrapper)


class RenderedItem(Strict):
    """A string that POLAR's client rendered: one separator inside, the score token at its end."""

    text: str
    id: str | None = None

    def item(self) -> ServeItem:
        return Rendered(self.text)


WireItem = Annotated[
    Annotated[TripleItem, Tag(AS_TRIPLE)] | Annotated[RenderedItem, Tag(AS_RENDERED)], Discriminator(_item_tag)
]

Deadline = Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds from the request's arrival")]


class ScoreRequest(Strict):
    """Items to score. Keep those that share prompt and reference next to each other: the shared part is read once."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "items": [
                    {"prompt": "What is the capital of China?", "reference": "Beijing.", "output": "Beijing."},
                    {"prompt": "What is the capital of China?", "reference": "Beijing.", "output": "Shanghai."},
                ]
            }
        }
    )

    items: list[WireItem]
    model: str | None = None
    deadline_s: Deadline | None = None


class WirePair(Strict):
    """Two candidates, judged against the same reference."""

    prompt: WireTurns
    reference: WireTurns
    first: WireTurns
    second: WireTurns
    wrapper: Wrapper = "sft"
    id: str | None = None

    def items(self) -> tuple[ServeItem, ServeItem]:
        prompt, reference = turns(self.prompt), turns(self.reference)
        return (
            PolarItem(prompt, reference, turns(self.first), self.wrapper),
            PolarItem(prompt, reference, turns(self.second), self.wrapper),
        )


class CompareRequest(Strict):
    """Pairs to compare."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "pairs": [
                    {
                        "prompt": "What is the capital of China?",
                        "reference": "Beijing.",
                        "first": "Beijing.",
                        "second": "Shanghai.",
                    }
                ]
            }
        }
    )

    pairs: list[WirePair]
    model: str | None = None
    deadline_s: Deadline | None = None


class WeightsRequest(Strict):
    """The folder of the weights to serve from now on, as the server sees it."""

    folder: Annotated[str, Field(min_length=1)]


class ErrorDetail(BaseModel):
    """``code`` is for programs, ``message`` for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """What every refused request is answered with."""

    error: ErrorDetail


class ScoredItem(BaseModel):
    """``reward`` is the raw number of the model, unbounded. An item that failed has ``error`` in its place."""

    index: int
    id: str | None
    reward: float | None = None
    truncated: list[Literal["prompt", "reference", "output"]] | None = None
    tokens: int | None = None
    cached_tokens: int | None = None
    error: ErrorDetail | None = None


class Usage(BaseModel):
    """Tokens of all items, and how many of them were reused."""

    tokens: int
    cached_tokens: int


class ScoreAnswer(BaseModel):
    """As many items as the request had, in its order."""

    model: str
    weight_version: int
    data: list[ScoredItem]
    usage: Usage


class ComparedPair(BaseModel):
    """``probability`` that the first is the better one, sigmoid(first - second), and the two raw rewards."""

    index: int
    id: str | None
    probability: float | None = None
    first: float | None = None
    second: float | None = None
    error: ErrorDetail | None = None


class CompareAnswer(BaseModel):
    """As many pairs as the request had, in its order."""

    model: str
    weight_version: int
    data: list[ComparedPair]
    usage: Usage


class WeightsAnswer(BaseModel):
    """What is served now."""

    model: str
    weight_version: int


def turns(value: str | list[WireMessage]) -> Turns:
    """A text, or messages, as items hold them."""
    return value if isinstance(value, str) else tuple(Message(m.role, m.content) for m in value)
