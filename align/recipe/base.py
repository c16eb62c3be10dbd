"""What every recipe and every section of one share."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

KeyPath = tuple[str | int, ...]


class Section(BaseModel):
    """What every section shares: nothing unknown, nothing coerced, nothing changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def refuse(conflicts: Iterable[tuple[KeyPath, str]]) -> None:
    """Raises one pydantic error for all (key to change, reason); :mod:`align.recipe.explain` takes it apart again."""
    found = list(conflicts)
    if found:
        text = "; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in found)
        raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})
