"""Errors of judgement as a whole; what happens to a single item is a ``ScoreFailure``. Messages are one line."""


class RewardError(RuntimeError):
    """A scorer or judge cannot be used; the message is one line that says what to do."""


class Unauthorized(RewardError):
    """The server does not accept the token (401, 403)."""


class BadRequest(RewardError):
    """The server will never accept this request (the other 4xx). ``item`` is the place of the item at fault among those
    that were given, where the server named one."""

    def __init__(self, message: str, item: int | None = None) -> None:
        super().__init__(message)
        self.item = item


class Overloaded(RewardError):
    """The server has no room (429, 503), also at the last try. ``retry_after_s`` is what it asks to wait, where it
    does."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Timeout(RewardError):
    """No answer in time: a try's ``timeout_s`` also at the last try, or the deadline of the whole call."""


class ServerError(RewardError):
    """The server fails (5xx), cannot be reached, or breaks off its answers, also at the last try."""


class ProtocolError(RewardError):
    """An answer that is whole but wrong: no JSON, too few items or too many, another order, no finite number."""
