"""Questions over HTTP, and how patiently they are asked: the one policy of tries for all clients of servers.

What is asked here changes nothing on the server, so that it may be asked again after any failure.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from rewards.errors import RewardError, Timeout
from rewards.failures import Broken, Failure, refusal

ERROR_BYTES = 16384
"""So much is read of a body that explains an error."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for, in seconds.

    ``timeout_s`` bounds connecting, every silence, and the time in which an answer makes no progress: one that is read
    as a whole must be complete by then, one that is read line by line must bring a line. A try that fails is repeated
    up to ``retries`` times; the pause before is ``backoff_s``, doubled each time up to ``max_wait_s`` and up to half of
    it left to chance, or what the server asks for in ``Retry-After``. A server that asks for more than ``max_wait_s``
    is given up. ``deadline_s`` bounds a call as a whole, pauses included, to within one silence; None sets no bound.
    """

    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    max_wait_s: float = 60.0
    deadline_s: float | None = None

    def checked(self, url: str) -> "Patience":
        """Itself; :class:`RewardError` where a value has no meaning."""
        if self.timeout_s <= 0 or min(self.retries, self.backoff_s, self.max_wait_s) < 0:
            raise RewardError(f"{url}: timeout_s must be above 0; retries, backoff_s and max_wait_s at least 0")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise RewardError(f"{url}: deadline_s must be above 0, or none at all")
        return self


PATIENCE = Patience()


class Deadline:
    """A moment at which a call as a whole must end; None seconds from now is never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds, at least 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class Exchange(Protocol):
    """A question, and the reading of its answer as it arrives. A new try begins it anew."""

    @property
    def method(self) -> Literal["GET", "POST"]: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def content(self) -> bytes:
        """The body of the next try."""
        ...

    def begin(self, content_type: str) -> None:
        """A 2xx answer starts."""
        ...

    def feed(self, chunk: bytes) -> bool:
        """More of it; whether that is progress, after which a new silence may last ``timeout_s``. Raises
        :class:`rewards.failures.Broken` where the server says in it that it cannot go on."""
        ...

    def end(self) -> None:
        """The answer is whole."""
        ...

    def complete(self) -> bool:
        """Whether a further try would have nothing left to ask for."""
        ...


class Tries:
    """Counts the tries of one exchange: how long each may last, what pause comes next, when it is enough."""

    def __init__(self, url: str, patience: Patience, deadline: Deadline) -> None:
        self._url = url
        self._patience = patience
        self._deadline = deadline
        self._failed = 0
        self._since = 0.0
        self._jitter = random.Random()

    def begin(self) -> float:
        """Starts a try; the longest silence that it may have, in seconds."""
        remaining = self._deadline.remaining()
        if remaining == 0:
            raise Timeout(f"{self._url} cannot answer in {self._deadline.seconds:g} s: allow more time")
        self.progress()
        return self._patience.timeout_s if remaining is None else min(self._patience.timeout_s, remaining)

    def progress(self) -> None:
        """The answer got further."""
        self._since = time.monotonic()

    def late(self) -> Failure | None:
        """Why an answer that still arrives is given up; httpx bounds each silence, but not a server that drips."""
        if time.monotonic() - self._since > self._patience.timeout_s:
            return Failure(Timeout, f"gave no whole answer in {self._patience.timeout_s:g} s")
        return self._past() if self._deadline.remaining() == 0 else None

    def broken(self, error: httpx.HTTPError | httpx.InvalidURL) -> Failure:
        """What an exception of httpx means; raises where a further try would be the same."""
        if isinstance(error, httpx.TimeoutException):
            if self._deadline.remaining() == 0:
                return self._past()
            return Failure(Timeout, f"gave no answer in {self._patience.timeout_s:g} s")
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            raise RewardError(f"{self._url} is not a URL ({error}): correct it") from error
        return Failure.of(error)

    def pause(self, failure: Failure) -> float:
        """Seconds before the next try; raises the failure when there is none."""
        self._failed += 1
        patience, remaining = self._patience, self._deadline.remaining()
        if remaining == 0:
            raise Timeout(f"{self._url} {failure.reason}, and the deadline is over: allow more time")
        if self._failed > patience.retries:
            raise failure.error(
                f"{self._url} {failure.reason}, also at the last of {patience.retries + 1} tries: "
                "check that the server runs and that the URL is right"
            )
        wait = failure.wait_s or 0.0
        if wait > patience.max_wait_s:
            raise failure.error(
                f"{self._url} {failure.reason} and asks to wait {wait:.0f} s, longer than max_wait_s "
                f"({patience.max_wait_s:g} s): try again later, or allow it"
            )
        # A random part keeps runs that share a server from coming back all at once.
        pause = min(patience.backoff_s * 2.0 ** min(self._failed - 1, 30), patience.max_wait_s)
        pause = max(pause * self._jitter.uniform(0.5, 1), wait)
        if remaining is not None and pause >= remaining:
            raise Timeout(
                f"{self._url} {failure.reason}, and the deadline of {self._deadline.seconds:g} s leaves no time for "
                "another try: allow more"
            )
        return pause

    def _past(self) -> Failure:
        return Failure(Timeout, f"gave no answer before the deadline of {self._deadline.seconds:g} s")


class Transport:
    """Keeps connections to a server and asks over them. ``sleep`` is what pauses."""

    def __init__(
        self, patience: Patience, headers: Mapping[str, str], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._patience = patience
        self._sleep = sleep
        self._client = httpx.Client(headers=headers)

    def run(self, url: str, exchange: Exchange, deadline: Deadline) -> Iterator[None]:
        """Until ``exchange`` has its answer; comes up whenever it got further.

        Raises a :class:`RewardError`: at once for what no further try can change, else after the last one.
        """
        tries = Tries(url, self._patience, deadline)
        while True:
            silence, content, headers = tries.begin(), exchange.content(), exchange.headers
            try:
                with self._client.stream(
                    exchange.method, url, content=content, headers=headers, timeout=silence
                ) as response:
                    if not response.is_success:
                        failure = refusal(url, response, self._explanation(response))
                    else:
                        exchange.begin(response.headers.get("content-type", ""))
                        for chunk in response.iter_bytes():
                            if exchange.feed(chunk):
                                yield
                                tries.progress()
                            late = tries.late()
                            if late is not None:
                                failure = late
                                break
                        else:
                            exchange.end()
                            return
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = tries.broken(error)
            except Broken as error:
                failure = error.failure
            if exchange.complete():
                return
            self._sleep(tries.pause(failure))

    def status(self, url: str, timeout_s: float) -> tuple[int | None, str]:
        """The status of one GET and what its body says; None and the reason where there is no answer."""
        try:
            with self._client.stream("GET", url, timeout=timeout_s) as response:
                return response.status_code, self._explanation(response).decode(errors="replace")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, Failure.of(error).reason

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def _explanation(self, response: httpx.Response) -> bytes:
        body = b""
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) >= ERROR_BYTES:
                break
        return body[:ERROR_BYTES]


class AsyncTransport:
    """:class:`Transport` for coroutines."""

    def __init__(
        self,
        patience: Patience,
        headers: Mapping[str, str],
        connections: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._patience = patience
        self._sleep = sleep
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.AsyncClient(headers=headers, limits=limits)

    async def run(self, url: str, exchange: Exchange, deadline: Deadline) -> AsyncGenerator[None, None]:
        """:meth:`Transport.run`."""
        tries = Tries(url, self._patience, deadline)
        while True:
            silence, content, headers = tries.begin(), exchange.content(), exchange.headers
            try:
                async with self._client.stream(
                    exchange.method, url, content=content, headers=headers, timeout=silence
                ) as response:
                    if not response.is_success:
                        failure = refusal(url, response, await self._explanation(response))
                    else:
                        exchange.begin(response.headers.get("content-type", ""))
                        async for chunk in response.aiter_bytes():
                            if exchange.feed(chunk):
                                yield
                                tries.progress()
                            late = tries.late()
                            if late is not None:
                                failure = late
                                break
                        else:
                            exchange.end()
                            return
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = tries.broken(error)
            except Broken as error:
                failure = error.failure
            if exchange.complete():
                return
            await self._sleep(tries.pause(failure))

    async def status(self, url: str, timeout_s: float) -> tuple[int | None, str]:
        """:meth:`Transport.status`."""
        try:
            async with self._client.stream("GET", url, timeout=timeout_s) as response:
                return response.status_code, (await self._explanation(response)).decode(errors="replace")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, Failure.of(error).reason

    async def close(self) -> None:
        """Gives the connections back."""
        await self._client.aclose()

    async def _explanation(self, response: httpx.Response) -> bytes:
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= ERROR_BYTES:
                break
        return body[:ERROR_BYTES]
