"""The error of success judgement."""


class SuccessError(ValueError):
    """Episodes, a model or a setting cannot be used; the message is one line that says what to do."""
