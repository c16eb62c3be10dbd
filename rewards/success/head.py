"""Small heads on frozen features: how they are trained, and what they say of frames they were not trained on.

Letters: ``N`` examples, ``V`` views (shifted copies) of each, ``D`` features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rewards.success.errors import SuccessError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """A linear head, or with ``hidden`` units one layer between. ``dropout`` acts on the features; ``weight_decay`` is
    AdamW's. Batches hold as many examples done as undone."""

    hidden: int = 0
    dropout: float = 0.5
    weight_decay: float = 0.1
    learning_rate: float = 1e-3
    steps: int = 300
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.steps < 1 or self.batch_size < 2:
            raise ValueError("a head needs hidden of 0 or more, and at least 1 step and 2 examples a batch")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


class Head(nn.Module):
    """Logits [N] of features [N, D], each first brought to mean 0 and spread 1 by what training saw."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, config: HeadConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.drop = nn.Dropout(config.dropout)
        self.inner = nn.Linear(features, config.hidden) if config.hidden else None
        self.out = nn.Linear(config.hidden or features, 1)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``generator`` draws the dropout; without one nothing is dropped."""
        x = ((x - self.mean) * self.scale).clamp(-10, 10)
        x = self._dropped(x, generator)
        if self.inner is not None:
            x = self._dropped(torch.relu(self.inner(x)), generator)
        logits: Tensor = self.out(x)[:, 0]
        return logits

    def _dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or self.drop.p == 0:
            return x
        kept = torch.rand(x.shape, generator=generator) >= self.drop.p
        return x * kept / (1 - self.drop.p)


def train_head(features: Floats, done: NDArray[np.bool_], config: HeadConfig, seed: int) -> Head:
    """A head fitted to ``features`` [N, V, D]; each draw takes one view of an example. Reproducible by ``seed``.

    Raises :class:`SuccessError` where a class is missing.
    """
    if done.all() or not done.any():
        raise SuccessError(
            "a success head needs examples of the task done and undone; give demonstrations and failures"
        )
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(features)
    head = _initialised(Head(x.shape[-1], config), x, generator)
    classes = [torch.from_numpy(np.flatnonzero(wanted)) for wanted in (done, ~done)]
    half = config.batch_size // 2
    labels = torch.cat((torch.ones(half), torch.zeros(half)))
    decayed = [p for p in head.parameters() if p.ndim > 1]
    plain = [p for p in head.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    for _ in range(config.steps):
        rows = torch.cat([of[torch.randint(len(of), (half,), generator=generator)] for of in classes])
        views = torch.randint(x.shape[1], (2 * half,), generator=generator)
        loss = binary_cross_entropy_with_logits(head(x[rows, views], generator), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return head.eval().requires_grad_(False)


@torch.no_grad()
def head_logits(head: Head, features: Floats) -> Floats:
    """[N] of features [N, D]."""
    logits: Floats = head(torch.from_numpy(np.ascontiguousarray(features))).numpy()
    return logits


@torch.no_grad()
def _initialised(head: Head, x: Tensor, generator: torch.Generator) -> Head:
    flat = x.flatten(0, 1)
    head.mean.copy_(flat.mean(0))
    # A feature that hardly ever moves would, scaled to spread 1, shout at the first frame where it does.
    spread = flat.std(0, correction=0)
    head.scale.copy_(1 / (spread + 0.1 * spread.mean() + 1e-6))
    for parameter in head.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[1] ** -0.5 * (1.0 if parameter is not head.out.weight else 0.1),
                              generator=generator)  # fmt: skip
        else:
            parameter.zero_()
    return head
