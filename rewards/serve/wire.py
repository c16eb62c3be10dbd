"""The native contract as a client speaks it: items to JSON, answers to scores, and what makes an answer wrong."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rewards.errors import BadRequest, Overloaded, ProtocolError, RewardError, Timeout
from rewards.failures import Broken, Failure
from rewards.polar.scorer import ItemScore
from rewards.polar.types import Turns, Wrapper
from rewards.serve.types import Limits, Rendered, ServeItem
from rewards.transport import Deadline
from rewards.types import Score, ScoreFailure

T = TypeVar("T")

NDJSON = "application/x-ndjson"
STREAM_FROM = 32
"""From so many items on an answer is asked for line by line."""
MAX_ANSWER_BYTES = 256 * 2**20
PARTS = frozenset({"prompt", "reference", "output"})
REFUSALS: Mapping[str, type[RewardError]] = {"overloaded": Overloaded, "unavailable": Overloaded, "deadline": Timeout}
"""Codes with which a server that answers line by line gives up the rest of a request: no fault of those items."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates of which one is to be preferred, relative to ``reference``."""

    prompt: Turns
    reference: Turns
    first: Turns
    second: Turns
    wrapper: Wrapper = "sft"


@dataclass(frozen=True, slots=True)
class PairScore:
    """``probability`` in [0, 1] that the first is the better one, ``sigmoid(first - second)``; the two rewards, None
    where there are none."""

    probability: Score
    first: float | None
    second: float | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who scored: the model's name, and which of its weights; None where a server does not tell."""

    model: str | None
    weights: int | str | None


def turns_payload(turns: Turns) -> Any:
    """A text, or a list of ``{"role", "content"}``."""
    return turns if isinstance(turns, str) else [{"role": m.role, "content": m.content} for m in turns]


def item_payload(item: ServeItem) -> dict[str, Any]:
    """One entry of ``items``."""
    if isinstance(item, Rendered):
        return {"text": item.text}
    texts = {"prompt": item.prompt, "reference": item.reference, "output": item.output}
    return {name: turns_payload(value) for name, value in texts.items()} | {"wrapper": item.wrapper}


def pair_payload(pair: Pair) -> dict[str, Any]:
    """One entry of ``pairs``."""
    texts = {"prompt": pair.prompt, "reference": pair.reference, "first": pair.first, "second": pair.second}
    return {name: turns_payload(value) for name, value in texts.items()} | {"wrapper": pair.wrapper}


def read_score(row: Mapping[str, Any]) -> ItemScore:
    """One entry of ``data``. Servers that do not count tokens may leave them out. Raises ``ValueError``."""
    failure = _failure(row)
    score: Score = failure if failure is not None else _number(row, "reward")
    truncated = row.get("truncated") or []
    if not isinstance(truncated, list) or not PARTS.issuperset(map(str, truncated)):
        raise ValueError(f"with truncated {str(truncated)[:80]}")
    return ItemScore(score, frozenset(map(str, truncated)), _count(row, "cached_tokens"), _count(row, "tokens"))


def read_pair(row: Mapping[str, Any]) -> PairScore:
    """One entry of the ``data`` of a comparison. Raises ``ValueError``."""
    failure = _failure(row)
    if failure is not None:
        first, second = (None if row.get(name) is None else _number(row, name) for name in ("first", "second"))
        return PairScore(failure, first, second)
    probability = _number(row, "probability")
    if not 0 <= probability <= 1:
        raise ValueError(f"with {probability}, not a probability between 0 and 1,")
    return PairScore(probability, _number(row, "first"), _number(row, "second"))


def chunks(payloads: Sequence[bytes], most_items: int, most_bytes: int) -> list[range]:
    """Consecutive stretches of at most ``most_items`` and together ``most_bytes``; what is larger goes alone."""
    stretches: list[range] = []
    start = size = 0
    for end, payload in enumerate(payloads):
        if end > start and (end - start == most_items or size + len(payload) > most_bytes):
            stretches.append(range(start, end))
            start, size = end, 0
        size += len(payload) + 1
    return [*stretches, range(start, len(payloads))] if payloads else []


class Question(Generic[T]):
    """One request for ``payloads``, and its checked answer; implements :class:`rewards.transport.Exchange`.

    ``key`` is what the request calls them, ``start`` the place of the first among those that the caller gave. Where
    rows have been taken (:meth:`take`) a further try asks for the rest alone, else for everything again.
    """

    method: Literal["GET", "POST"] = "POST"

    def __init__(
        self,
        url: str,
        key: Literal["items", "pairs"],
        payloads: Sequence[bytes],
        read: Callable[[Mapping[str, Any]], T],
        *,
        model: str | None,
        deadline: Deadline,
        start: int = 0,
    ) -> None:
        self.url = url
        self._key = key
        self._payloads = payloads
        self._reader = read
        self._model = model
        self.deadline = deadline
        self._start = start
        self._taken = 0
        self._asked_from = 0
        self._rows: list[T] = []
        self._lines = False
        self._headed = False
        self._rest = bytearray()
        self.identity = Identity(None, None)

    @property
    def headers(self) -> Mapping[str, str]:
        accept = f"{NDJSON}, application/json;q=0.5" if len(self._payloads) >= STREAM_FROM else "application/json"
        return {"content-type": "application/json", "accept": accept}

    def content(self) -> bytes:
        self._rows.clear()
        self._asked_from = self._taken
        remaining = self.deadline.remaining()
        deadline_s = None if remaining is None else min(remaining, Limits().max_deadline_s)
        options = {"model": self._model, "deadline_s": deadline_s}
        fields = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in options.items() if value)
        payloads = b",".join(self._payloads[self._taken :])
        return b'{"%s":[%s]%s}' % (self._key.encode(), payloads, fields.encode())

    def begin(self, content_type: str) -> None:
        self._lines = content_type.partition(";")[0].strip().lower() == NDJSON
        self._headed = False
        self._rest.clear()

    def feed(self, chunk: bytes) -> bool:
        self._rest += chunk
        if len(self._rest) > MAX_ANSWER_BYTES:
            raise self._wrong(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        if not self._lines or b"\n" not in chunk:
            return False
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if line.strip():
                self._line(line)
        return True

    def end(self) -> None:
        if not self._lines:
            answer = self._json(self._rest)
            self._head(answer)
            rows = answer.get("data")
            if not isinstance(rows, list):
                raise self._wrong('answered without a list "data"')
            for row in rows:
                self._row(row)
        elif self._rest.strip():
            self._line(self._rest)
        if self._read_rows() != self._due():
            raise self._wrong(f"answered {self._read_rows()} {self._key} for {self._due()}")

    def complete(self) -> bool:
        return self._taken == len(self._payloads)

    def take(self) -> list[T]:
        """The rows that have come since the last call, in order."""
        rows, self._rows = self._rows, []
        self._taken += len(rows)
        return rows

    def located(self, error: BadRequest) -> BadRequest:
        """The server's complaint with the item's place among those that the caller gave."""
        before = self._start + self._asked_from
        if error.item is None or before == 0:
            return error
        place = before + error.item
        return BadRequest(f"{error} (item {place} of those given)", place)

    def _line(self, line: bytes | bytearray) -> None:
        answer = self._json(line)
        if self._headed:
            self._row(answer)
        else:
            self._headed = True
            self._head(answer)

    def _head(self, answer: Mapping[str, Any]) -> None:
        model, weights = answer.get("model"), answer.get("weight_version")
        self.identity = Identity(
            model if isinstance(model, str) else None, weights if isinstance(weights, int | str) else None
        )

    def _row(self, row: Any) -> None:
        place = self._read_rows()
        if not isinstance(row, dict):
            raise self._wrong(f"answered an item with {type(row).__name__}, not an object")
        if place >= self._due():
            raise self._wrong(f"answered more than {self._due()} {self._key}")
        index = row.get("index")
        # Python takes true for 1; in JSON it is no number.
        if index != place or isinstance(index, bool):
            raise self._wrong(f"answered with index {index!r} where {place} was due")
        given_up = row.get("error")
        code = given_up.get("code") if isinstance(given_up, dict) else None
        if isinstance(code, str) and code in REFUSALS:
            raise Broken(Failure(REFUSALS[code], f"gave up after {self._asked_from + place} {self._key} ({code})"))
        try:
            self._rows.append(self._reader(row))
        except ValueError as error:
            raise self._wrong(f"answered {error} for item {self._start + self._asked_from + place}") from error

    def _read_rows(self) -> int:
        """Rows of the present answer."""
        return self._taken + len(self._rows) - self._asked_from

    def _due(self) -> int:
        """Rows that it must have."""
        return len(self._payloads) - self._asked_from

    def _json(self, text: bytes | bytearray) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._wrong("answered with something that is not JSON") from error
        if not isinstance(answer, dict):
            raise self._wrong(f"answered with {type(answer).__name__}, not an object")
        return answer

    def _wrong(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.url} {what}: check that a reward server of this contract runs there")


def _failure(row: Mapping[str, Any]) -> ScoreFailure | None:
    error = row.get("error")
    if error is None:
        return None
    if isinstance(error, Mapping):
        error = ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
    return ScoreFailure(" ".join(str(error).split())[:200] or "the server gave no reason")


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"with {str(value)[:40]!r}, no number {key!r},")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond what a float holds
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"with {number}, not a finite number,")
    return number


def _count(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"with {str(value)[:40]!r}, no count {key!r},")
    return value
