"""The error of judgement as a whole; what happens to a single item is a ``ScoreFailure``."""


class RewardError(RuntimeError):
    """A scorer or judge cannot be used; the message is one line that says what to do."""
