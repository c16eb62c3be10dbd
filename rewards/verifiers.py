"""Scores from checking the answer: 1 right, 0 wrong, partial credit where the task gives it."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from rewards.types import Score, ScoreFailure
from rollouts.types import Rollout

Extract = Literal["auto", "last_number", "text"]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def extract_answer(text: str, expected: str, how: Extract = "auto") -> str:
    """What a completion answers.

    ``text`` is the whole completion; ``last_number`` its last number, thousands separators removed, empty when there
    is none; ``auto`` is ``last_number`` where the expected answer is a number and ``text`` elsewhere.
    """
    if how == "text" or (how == "auto" and not _NUMBER.fullmatch(expected.strip())):
        return text.strip()
    # "3 - 5" means minus; "the answer is -2" and "=-2" mean a sign. A minus is a sign unless a digit stands before it.
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.replace("\u2212", "-"))
    matches = list(_NUMBER.finditer(plain))
    if not matches:
        return ""
    last = matches[-1]
    found = last.group()
    if found.startswith("-") and plain[: last.start()].rstrip()[-1:].isdigit():
        found = found[1:]
    return found


class VerifierScorer:
    """Checks completions against the prompt's answer; implements :class:`rewards.types.Scorer`.

    Prompts from reasoning-gym are judged by their task's own ``score_answer``; all others by equality with
    ``Prompt.answer``. Scores below ``threshold`` count as 0: many tasks give a small credit to any wrong text.
    """

    def __init__(self, extract: Extract = "auto", threshold: float = 0.0) -> None:
        self._extract = extract
        self._threshold = threshold
        self._tasks: dict[str, Any] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        return [[self._one(rollout, completion.text) for completion in rollout.completions] for rollout in rollouts]

    def _one(self, rollout: Rollout, text: str) -> Score:
        prompt = rollout.prompt
        if prompt.answer is None:
            return ScoreFailure(f"prompt {prompt.id!r} has no answer to check against")
        found = extract_answer(text, prompt.answer, self._extract)
        if "task" not in prompt.metadata:
            return float(found == prompt.answer.strip())
        try:
            score = float(self._task(prompt.metadata["task"]).score_answer(found, prompt.metadata["entry"]))
        except Exception as error:
            # Verifiers of the gym raise on text they do not expect; that is no score, and never a zero.
            return ScoreFailure(f"verifier of {prompt.metadata['task']} raised {type(error).__name__}: {error}")
        return score if score >= self._threshold else 0.0

    def _task(self, name: str) -> Any:
        if name not in self._tasks:
            from reasoning_gym.factory import DATASETS

            dataset, config = DATASETS[name]
            self._tasks[name] = dataset(config(size=1, seed=0))
        return self._tasks[name]
