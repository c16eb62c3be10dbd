"""Questions to a judgement server over HTTP: batches, deadlines, retries. Shared by remote scorers and judges."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rewards.errors import RewardError
from rewards.types import Score, ScoreFailure

_BUSY = (429, 503)
"""Statuses whose ``Retry-After`` counts."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where a server is and how patiently it is asked.

    ``timeout_s`` bounds connecting and every silence, and an answer that still drips after it is given up. A try that
    fails is repeated ``retries`` times; the pause before is ``backoff_s``, doubled each time up to ``max_wait_s``, or
    what the server asks for in ``Retry-After``. A server that asks for more than ``max_wait_s`` is given up.
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


@dataclass(frozen=True, slots=True)
class _Repeatable:
    """A try that failed, but may not fail again; ``wait_s`` is the server's own wish."""

    reason: str
    wait_s: float | None = None


class Endpoint:
    """One URL that takes ``{"items": [...]}`` and answers ``{"items": [...]}``, as many and in the same order.

    Raises :class:`RewardError`, in one line: for a URL or token that cannot work, for a status that will not change
    (4xx other than 408 and 429, redirects), and for a server that stays away or broken after the last retry. An answer
    that cannot be read is no reason to end a run: it is a failure of each item of its batch.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        if not config.url.startswith(("http://", "https://")):
            raise RewardError(f"endpoint {config.url!r} must start with http:// or https://")
        if min(config.timeout_s, config.batch_size) <= 0 or min(config.retries, config.backoff_s) < 0:
            raise RewardError(f"endpoint {config.url}: timeout_s and batch_size must be above 0, the rest at least 0")
        self._config = config
        self._sleep = sleep
        self._jitter = random.Random()
        self._client = httpx.Client(timeout=config.timeout_s, headers=_headers(config))

    def ask(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | ScoreFailure]:
        """The server's answer to each item: an object without ``error``, or a failure with a reason."""
        size = self._config.batch_size
        return [a for start in range(0, len(items), size) for a in self._batch(items[start : start + size])]

    def numbers(self, items: Sequence[Mapping[str, Any]], key: str, check: Callable[[Any, str], Score]) -> list[Score]:
        """What each answer holds under ``key``, as far as ``check`` lets it pass."""
        return [a if isinstance(a, ScoreFailure) else self._number(a, key, check) for a in self.ask(items)]

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def _batch(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | ScoreFailure]:
        body = self._post(json.dumps({"items": list(items)}).encode())
        try:
            answer = json.loads(body)
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

    def _post(self, content: bytes) -> bytes:
        """The body of a 2xx answer, after as many tries as are allowed."""
        config = self._config
        for attempt in range(config.retries):
            result = self._try(content)
            if isinstance(result, bytes):
                return result
            self._sleep(self._pause(attempt, result))
        result = self._try(content)
        if isinstance(result, bytes):
            return result
        raise RewardError(
            f"{config.url} {result.reason}, also at the last of {config.retries + 1} tries: "
            "check that the server runs and that the URL is right"
        )

    def _pause(self, attempt: int, failed: _Repeatable) -> float:
        """Seconds before the next try."""
        config = self._config
        # A random part keeps runs that share a server from coming back all at once.
        pause = min(config.backoff_s * 2.0 ** min(attempt, 30), config.max_wait_s) * self._jitter.uniform(0.5, 1)
        wait = failed.wait_s or 0.0
        if wait > config.max_wait_s:
            raise RewardError(
                f"{config.url} {failed.reason} and asks to wait {wait:.0f} s, longer than max_wait_s "
                f"({config.max_wait_s:g} s): try again later, or allow it"
            )
        return max(pause, wait)

    def _try(self, content: bytes) -> bytes | _Repeatable:
        deadline = time.monotonic() + self._config.timeout_s
        try:
            with self._client.stream("POST", self._config.url, content=content) as response:
                chunks: list[bytes] = []
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    # httpx bounds each silence; a server that drips must not hold the run for ever.
                    if time.monotonic() > deadline:
                        return _Repeatable(f"gave no whole answer in {self._config.timeout_s:g} s")
        except httpx.TimeoutException:
            return _Repeatable(f"gave no answer in {self._config.timeout_s:g} s")
        except httpx.DecodingError as error:
            return _Repeatable(f"sent a broken answer ({error})")
        except httpx.TransportError as error:
            return _Repeatable(f"cannot be reached ({error or type(error).__name__})")
        except httpx.InvalidURL as error:
            raise RewardError(f"{self._config.url} is not a URL ({error}): correct it") from error
        return self._body_of(response, b"".join(chunks))

    def _body_of(self, response: httpx.Response, body: bytes) -> bytes | _Repeatable:
        status = response.status_code
        if response.is_success:
            return body
        if status in (408, 429) or status >= 500:
            wait = _retry_after(response.headers.get("retry-after")) if status in _BUSY else None
            return _Repeatable(f"answered {status}", wait)
        advice = {401: "check the token and token_env", 403: "check the token and token_env", 404: "check the URL"}
        text = " ".join(body.decode(errors="replace").split())[:200]
        raise RewardError(
            f"{self._config.url} answered {status}{f' ({text})' if text else ''}: "
            f"{advice.get(status, 'the server does not accept such requests')}"
        )


def _headers(config: EndpointConfig) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if config.token_env is not None:
        token = os.environ.get(config.token_env, "").strip()
        if not token:
            raise RewardError(f"endpoint {config.url}: set the environment variable {config.token_env} to its token")
        if not (token.isascii() and token.isprintable()):
            raise RewardError(f"endpoint {config.url}: the token in {config.token_env} cannot stand in a header")
        headers["authorization"] = f"Bearer {token}"
    return headers


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: the header holds a number of them, or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in GMT, like all of HTTP's.
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
