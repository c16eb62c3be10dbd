"""TRL's reward functions over a scorer of items: for ``reward_funcs=[...]`` of its GRPO and RLOO trainers.

A reward function of TRL may answer None for an item, which becomes a NaN that the trainer only warns about; and one
that asks a server tends to answer None, or zero, when the server fails. This one raises instead.
"""

from collections.abc import Sequence
from typing import Any

from rewards.errors import RewardError
from rewards.polar.types import PolarItem
from rewards.serve.adapters import ScoreItems, numbers, turns_of


class TRLReward:
    """TRL's ``reward_func``, over ``score_items`` of a :class:`rewards.polar.scorer.PolarScorer` or a reward client.

    ``reference`` names the data set's column that holds the references, text or messages; a row without one is a
    :class:`RewardError`, and so is an item that has no score. Prompts and completions may be texts or messages, as TRL
    passes them. ``name`` is what TRL's metrics call the reward.
    """

    def __init__(self, score_items: ScoreItems, *, reference: str = "reference", name: str = "polar") -> None:
        self._score_items = score_items
        self._reference = reference
        self.__name__ = name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        references = columns.get(self._reference)
        if references is None:
            raise RewardError(
                f"the data set has no column {self._reference!r}: POLAR compares with a reference; add it, or name the "
                "column that holds it"
            )
        items = [
            PolarItem(
                turns_of(prompt, f"item {i}: prompt"),
                turns_of(reference, f"item {i}: {self._reference}"),
                turns_of(completion, f"item {i}: completion"),
            )
            for i, (prompt, completion, reference) in enumerate(zip(prompts, completions, references, strict=True))
        ]
        return numbers(self._score_items, items)
