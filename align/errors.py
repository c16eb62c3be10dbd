"""The error that a user can mend."""


class UserError(ValueError):
    """Bad input: one or more complete lines saying what is wrong and what to do. The command line exits with 2."""

    exit_code = 2

    def __init__(self, *messages: str) -> None:
        if not messages:
            raise ValueError("a UserError needs at least one message")
        super().__init__(*messages)
        self.messages: tuple[str, ...] = messages

    def __str__(self) -> str:
        return "\n".join(self.messages)
