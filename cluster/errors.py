"""What can go wrong with a part that lives in another process."""


class HostError(RuntimeError):
    """A part could not be hosted or reached; the message says what to do."""


class DeadlineExceeded(HostError):
    """A part did not answer in time. Whoever hosts it has killed its process, so that nothing hangs."""


class HostDied(HostError):
    """The process of a part is gone; the message names the part and its log."""
