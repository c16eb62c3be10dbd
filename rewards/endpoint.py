"""Questions to a judgement server over HTTP, in batches that are answered item by item."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.errors import RewardError
from rewards.failures import bearer
from rewards.transport import Deadline, Patience, Transport
from rewards.types import Score, ScoreFailure


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where a server is and how patiently it is asked (:class:`rewards.transport.Patience`).

    ``batch_size`` items go into one request. ``token_env`` names the environment variable that holds the bearer token;
    None sends none.
    """

    url: str
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    max_wait_s: float = 60.0
    batch_size: int = 64
    token_env: str | None = None

    def patience(self) -> Patience:
        """How patiently; :class:`RewardError` where a value has no meaning."""
        if self.batch_size <= 0:
            raise RewardError(f"{self.url}: batch_size must be above 0")
        return Patience(self.timeout_s, self.retries, self.backoff_s, self.max_wait_s).checked(self.url)


class Body:
    """An answer that is read as a whole; implements :class:`rewards.transport.Exchange`."""

    def __init__(self, method: Literal["GET", "POST"], content: bytes = b"") -> None:
        self.method: Literal["GET", "POST"] = method
        self.headers: Mapping[str, str] = {"content-type": "application/json"} if method == "POST" else {}
        self._content = content
        self._chunks: list[bytes] = []

    def content(self) -> bytes:
        return self._content

    def begin(self, content_type: str) -> None:
        self._chunks.clear()

    def feed(self, chunk: bytes) -> bool:
        self._chunks.append(chunk)
        return False

    def end(self) -> None:
        """There is nothing more to do."""

    def complete(self) -> bool:
        return False

    @property
    def answer(self) -> bytes:
        return b"".join(self._chunks)


class Endpoint:
    """One URL that takes ``{"items": [...]}`` and answers ``{"items": [...]}``, as many and in the same order.

    Raises :class:`RewardError`, in one line: for a URL or token that cannot work, for a status that will not change
    (4xx other than 408 and 429, redirects), and for a server that stays away or broken after the last retry. An answer
    that cannot be read is no reason to end a run: it is a failure of each item of its batch.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        check_url(config.url)
        self._config = config
        self._transport = Transport(config.patience(), bearer(config.url, config.token_env), sleep)

    def ask(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | ScoreFailure]:
        """The server's answer to each item: an object without ``error``, or a failure with a reason."""
        size = self._config.batch_size
        return [a for start in range(0, len(items), size) for a in self._batch(items[start : start + size])]

    def numbers(self, items: Sequence[Mapping[str, Any]], key: str, check: Callable[[Any, str], Score]) -> list[Score]:
        """What each answer holds under ``key``, as far as ``check`` lets it pass."""
        return [a if isinstance(a, ScoreFailure) else self._number(a, key, check) for a in self.ask(items)]

    def close(self) -> None:
        """Gives the connections back."""
        self._transport.close()

    def _batch(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | ScoreFailure]:
        body = Body("POST", json.dumps({"items": list(items)}).encode())
        for _ in self._transport.run(self._config.url, body, Deadline(None)):
            pass
        try:
            answer = json.loads(body.answer)
        except (ValueError, RecursionError):
            return [self._failure("answered with something that is not JSON")] * len(items)
        answers = answer.get("items") if isinstance(answer, dict) else None
        if not isinstance(answers, list):
            return [self._failure('answered without a list "items"')] * len(items)
        if len(answers) != len(items):
            return [self._failure(f"answered {len(answers)} items for {len(items)}")] * len(items)
        return [self._item(a) for a in answers]

    def _item(self, answer: Any) -> Mapping[str, Any] | ScoreFailure:
        if not isinstance(answer, dict):
            return self._failure(f"answered an item with {type(answer).__name__}, not an object")
        error = answer.get("error")
        return answer if error is None else self._failure(f"refused the item: {str(error)[:200]}")

    def _number(self, answer: Mapping[str, Any], key: str, check: Callable[[Any, str], Score]) -> Score:
        value = answer.get(key)
        # Python takes true for 1; in JSON it is no number.
        if value is None or isinstance(value, bool):
            return self._failure(f'answered an item without a number "{key}"')
        return check(value, self._config.url)

    def _failure(self, what: str) -> ScoreFailure:
        return ScoreFailure(f"{self._config.url} {what}")


def check_url(url: str) -> None:
    """:class:`RewardError` where no request can go to ``url``."""
    if not url.startswith(("http://", "https://")):
        raise RewardError(f"endpoint {url!r} must start with http:// or https://")
