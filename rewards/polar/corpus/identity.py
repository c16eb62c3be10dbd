"""The mark that says whose folder a corpus is."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.polar.corpus.config import CorpusConfig
from rewards.polar.files import write_json
from rewards.polar.types import PolarError

FORMAT = 1  # raise when what a folder holds is made differently
IDENTITY_FILE = "corpus.json"


def claim(folder: Path, config: CorpusConfig, sources: str) -> None:
    """Marks ``folder`` as this corpus' own. ``sources`` is the digest of its prompts and texts.

    Raises :class:`PolarError` when it holds another corpus, naming the first setting that differs. Samples of two
    configurations in one folder could not be told apart.
    """
    path = folder / IDENTITY_FILE
    ours = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(config), "sources": sources}))
    if not path.exists():
        write_json(path, ours)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PolarError(f"{path}: not JSON: remove the folder, or use another one") from error
    if theirs != ours:
        raise PolarError(
            f"{folder} holds a corpus of another configuration ({_difference(theirs, ours)}): use another folder, or "
            "remove this one"
        )


def _difference(theirs: Any, ours: Any, at: str = "") -> str:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return _first(sorted({*theirs, *ours}), lambda name: (theirs.get(name), ours.get(name)), at)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return _first(range(len(ours)), lambda index: (theirs[index], ours[index]), at)
    if at == "sources":
        return "its prompts or texts were others"
    if isinstance(theirs, list):
        return f"{at} has other entries"
    return f"{at} was {json.dumps(theirs)}, now {json.dumps(ours)}"


def _first(keys: Any, values: Callable[[Any], tuple[Any, Any]], at: str) -> str:
    key = next(key for key in keys if values(key)[0] != values(key)[1])
    return _difference(*values(key), f"{at}.{key}" if at else str(key))
