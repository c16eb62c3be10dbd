"""Bradley-Terry loss and accuracy of a policy discriminator on pairs that nothing was trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.polar.pairs import Ids, Pairs
from rewards.intervals import wilson

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Validation:
    """A measurement after ``step`` updates, which have seen ``tokens`` tokens.

    ``loss`` is ``-log sigmoid(r(chosen) - r(rejected))``, mean over pairs, in nats (equation 7; ln 2 is chance);
    ``accuracy`` the share of pairs whose chosen scores higher, ties counting half; ``margin`` the mean difference.
    """

    step: int
    tokens: int
    pairs: int
    loss: float
    accuracy: float
    margin: float

    def metrics(self) -> dict[str, float]:
        """As the tracker has it, with a 95% interval of the accuracy."""
        low, high = wilson(self.accuracy * self.pairs, self.pairs)
        return {
            "eval/loss": self.loss,
            "eval/accuracy": self.accuracy,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "eval/margin": self.margin,
        }


def validate(model: Any, pairs: Pairs, batch_size: int, *, step: int = 0, tokens: int = 0) -> Validation:
    """Measures ``model`` on ``pairs``, ``batch_size`` of them a pass, and leaves it in the mode it was in.

    Not the trainer's own ``evaluate``: its accuracy is a mean over passes, in which the pairs of a smaller last pass
    weigh more, it counts ties as wrong, and it does not sort by length.
    """
    import torch

    margins = torch.tensor(score_margins(model, pairs, batch_size), dtype=torch.float64)
    won = (margins > 0).double() + 0.5 * (margins == 0).double()
    return Validation(
        step=step,
        tokens=tokens,
        pairs=len(pairs),
        loss=float(-torch.nn.functional.logsigmoid(margins).mean()),
        accuracy=float(won.mean()),
        margin=float(margins.mean()),
    )


def score_margins(model: Any, pairs: Pairs, batch_size: int) -> list[float]:
    """``r(chosen) - r(rejected)`` of each pair, in order; one forward pass holds both sides of ``batch_size`` pairs."""
    import torch

    lengths = pairs.lengths()
    order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    margins = [0.0] * len(pairs)
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            for block in _blocks(order, batch_size):
                ids, mask = _padded(
                    [*(pairs.chosen[i] for i in block), *(pairs.rejected[i] for i in block)],
                    model.config.pad_token_id,
                    model.device,
                )
                scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).double()
                chosen, rejected = scores.chunk(2)
                for index, margin in zip(block, (chosen - rejected).tolist(), strict=True):
                    margins[index] = margin
    finally:
        model.train(was_training)
    return margins


def _blocks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    yield from (order[start : start + size] for start in range(0, len(order), size))


def _padded(sequences: Sequence[Ids], pad: int, device: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Ids and attention mask [B, L], padded on the right."""
    import torch

    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence).long()
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)
