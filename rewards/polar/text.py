"""Turns as one text."""

from rewards.polar.types import Turns


def plain_text(turns: Turns) -> str:
    """A text as it is; of messages the contents joined by line breaks, roles dropped, as POLAR reads them."""
    return turns if isinstance(turns, str) else "\n".join(message.content for message in turns)
