"""What a server's refusals and broken connections mean: a further try, or an error."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rewards.errors import BadRequest, Overloaded, RewardError, ServerError, Timeout, Unauthorized

_BUSY = (429, 503)
"""Statuses whose ``Retry-After`` counts."""
_ITEM = re.compile(r"\b(?:items|pairs)(?:\[|\.|, )(\d+)")
"""How validators name the item at fault in a message."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that failed, but may not fail again.

    ``kind`` is the error that the last such try becomes, ``wait_s`` the server's own wish.
    """

    kind: type[RewardError]
    reason: str
    wait_s: float | None = None

    @classmethod
    def of(cls, error: httpx.HTTPError | httpx.InvalidURL) -> "Failure":
        """What an exception of httpx means."""
        if isinstance(error, httpx.TimeoutException):
            return cls(Timeout, "gave no answer in time")
        if isinstance(error, httpx.DecodingError):
            return cls(ServerError, f"sent a broken answer ({error})")
        return cls(ServerError, f"cannot be reached ({error or type(error).__name__})")

    def error(self, message: str) -> RewardError:
        """The exception that says so."""
        return Overloaded(message, self.wait_s) if self.kind is Overloaded else self.kind(message)


class Broken(Exception):
    """An answer that began well and then says that the server cannot go on: the try has failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def refusal(url: str, response: httpx.Response, body: bytes) -> Failure:
    """What an answer that is not 2xx means. Raises :class:`Unauthorized` or :class:`BadRequest` where the next one
    would be the same: 4xx but 408 and 429, and redirects."""
    status = response.status_code
    if status in _BUSY:
        return Failure(Overloaded, f"answered {status}", _retry_after(response.headers.get("retry-after")))
    if status == 504:
        return Failure(Timeout, f"answered {status}")
    if status == 408 or status >= 500:
        return Failure(ServerError, f"answered {status}")
    text, item = explained(body)
    advice = {401: "check the token and token_env", 403: "check the token and token_env", 404: "check the URL"}
    message = (
        f"{url} answered {status}{f' ({text})' if text else ''}: "
        f"{advice.get(status, 'the server does not accept such requests')}"
    )
    raise Unauthorized(message) if status in (401, 403) else BadRequest(message, item)


def bearer(url: str, token_env: str | None) -> dict[str, str]:
    """The header that holds the token in the environment variable ``token_env``; none where that is None."""
    if token_env is None:
        return {}
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise RewardError(f"endpoint {url}: set the environment variable {token_env} to its token")
    if not (token.isascii() and token.isprintable()):
        raise RewardError(f"endpoint {url}: the token in {token_env} cannot stand in a header")
    return {"authorization": f"Bearer {token}"}


def explained(body: bytes) -> tuple[str, int | None]:
    """What the body of an error says in one line, and the place of the item that it names."""
    text, item = body.decode(errors="replace"), None
    try:
        error: Any = json.loads(body)
    except (ValueError, RecursionError):
        error = None
    if isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):
        error = error["error"]
        text = str(error.get("message") or text)
        item = error.get("item")
    if not isinstance(item, int) or isinstance(item, bool):
        named = _ITEM.search(text)
        item = int(named[1]) if named else None
    return " ".join(text.split())[:200], item


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
