"""Eight pairs for the tiny model, and a publisher that keeps what it is given."""

from typing import Any

import torch

from align.types import PairBatch
from rewards.types import ScoredPair
from rollouts.types import Completion, Finish, Message, Origin, Prompt


def pair(i: int, ours: tuple[int, ...], theirs: tuple[int, ...]) -> ScoredPair:
    def completion(ids: tuple[int, ...], origin: Origin) -> Completion:
        return Completion(ids, (-1.0,) * len(ids), "", Finish.STOP, origin, 0)

    prompt = Prompt(f"p{i}", (Message("user", "x"),))
    return ScoredPair(
        prompt, (5, 6, 7 + i), completion(ours, Origin.POLICY), completion(theirs, Origin.REFERENCE), 1.0, 1.0, 1
    )


class Shelf:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def publish(self, tensors: Any, version: int) -> str:
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return f"file:v{version}"

    def close(self) -> None:
        return None


PAIRS = tuple(pair(i, (8 + i, 9, 2), (20 + i, 2)) for i in range(8))
"""Each is a row of 8 tokens: 3 of the prompt, 3 of the chosen and 2 of the rejected completion."""

BATCH = PairBatch(PAIRS, (False,) * 8, 8)
