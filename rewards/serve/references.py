"""References that the server holds, for clients whose requests have none."""

import json
from pathlib import Path

from rewards.errors import RewardError


def load_references(path: Path) -> dict[str, str]:
    """Prompt to reference, from a file of JSON lines ``{"prompt": text, "reference": text}``; other keys are not read.

    Raises :class:`RewardError` naming the line: for what is no such object, and for a prompt with two references.
    """
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"references {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt, reference = _pair(line, f"references {path}, line {number}")
        if found.setdefault(prompt, reference) != reference:
            raise RewardError(f"references {path}, line {number}: another reference for a prompt that has one already")
    return found


def _pair(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise RewardError(f"{where}: is not JSON") from None
    prompt, reference = (entry.get(k) if isinstance(entry, dict) else None for k in ("prompt", "reference"))
    if not isinstance(prompt, str) or not isinstance(reference, str) or not reference:
        raise RewardError(f'{where}: give {{"prompt": text, "reference": text}}, the reference not empty')
    return prompt, reference
