"""Small heads on frozen maps: how they are trained, and what they say of frames they were not trained on.

Letters: ``N`` examples, ``V`` views (shifted copies) of each, ``C`` channels, ``h`` and ``w`` cells, ``S`` dimensions
of a state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rewards.success.errors import SuccessError

Floats = NDArray[np.float32]
STATE_NOISE = 0.1
"""Spread of what is added to standardised states in training: few demonstrations pin a success to a millimetre."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """``filters`` of ``kernel`` by ``kernel`` cells look for what a success looks like, wherever in the image it is: of
    each only the strongest answer counts. ``dropout`` acts on channels and on answers; ``weight_decay`` is AdamW's, and
    the ``learning_rate`` falls along a cosine. Batches hold as many examples done as undone.

    A linear head on all cells learns from five demonstrations where the object stood in those five: on fresh layouts it
    misses two to three times as many successes at the same rate of false positives (measured on Meta-World's window).
    """

    filters: int = 16
    kernel: int = 3
    dropout: float = 0.2
    weight_decay: float = 0.01
    learning_rate: float = 2e-3
    steps: int = 400
    batch_size: int = 32

    def __post_init__(self) -> None:
        if min(self.filters, self.kernel, self.steps) < 1 or self.batch_size < 2:
            raise ValueError("a head needs at least 1 filter, cell and step, and 2 examples a batch")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True, slots=True)
class Views:
    """Examples as a head sees them: ``maps`` float16 [N, V, C, h, w], and ``states`` float32 [N, S], S may be 0."""

    maps: NDArray[np.float16]
    states: Floats

    def __getitem__(self, rows: NDArray[Any]) -> "Views":
        return Views(self.maps[rows], self.states[rows])

    def __len__(self) -> int:
        """``N``."""
        return len(self.maps)


class Head(nn.Module):
    """Logits [N] of maps [N, C, h, w] and states [N, S], each brought to mean 0 and spread 1 as training saw them."""

    mean: Tensor
    scale: Tensor
    state_mean: Tensor
    state_scale: Tensor

    def __init__(self, channels: int, states: int, config: HeadConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.register_buffer("state_mean", torch.zeros(states))
        self.register_buffer("state_scale", torch.ones(states))
        self.look = nn.Conv2d(channels, config.filters, config.kernel)
        self.out = nn.Linear(config.filters + states, 1)
        self._dropout = config.dropout

    def forward(self, maps: Tensor, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``generator`` draws dropout and the noise on states; without one there is neither."""
        x = self._dropped((maps - self.mean) * self.scale, generator)
        answers = self._dropped(torch.relu(self.look(x)).flatten(2).amax(2), generator)
        known = (states - self.state_mean) * self.state_scale
        if generator is not None:
            known = known + STATE_NOISE * torch.randn(known.shape, generator=generator)
        logits: Tensor = self.out(torch.cat((answers, known), dim=1))[:, 0]
        return logits

    def _dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whole channels of maps, or single answers, set to 0."""
        if generator is None or self._dropout == 0:
            return x
        kept = torch.rand(x.shape[:2], generator=generator) >= self._dropout
        return x * kept.reshape(*kept.shape, *[1] * (x.ndim - 2)) / (1 - self._dropout)


def train_head(examples: Views, done: NDArray[np.bool_], config: HeadConfig, seed: int) -> Head:
    """A head fitted to ``examples``; each draw takes one view of an example. Reproducible by ``seed``.

    Raises :class:`SuccessError` where a class is missing or the maps are smaller than a filter.
    """
    if done.all() or not done.any():
        raise SuccessError(
            "a success head needs examples of the task done and undone; give demonstrations and failures"
        )
    if min(examples.maps.shape[-2:]) < config.kernel:
        raise SuccessError(f"maps of {examples.maps.shape[-2]} by {examples.maps.shape[-1]} cells are smaller than a "
                           f"filter of {config.kernel}; give larger images")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(examples.maps.shape[2], examples.states.shape[1], config)
    _standardise(head, examples)
    optimiser = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    half = config.batch_size // 2
    labels = torch.cat((torch.ones(half), torch.zeros(half)))
    for maps, states in _batches(examples, done, half, config.steps, generator):
        loss = binary_cross_entropy_with_logits(head(maps, states, generator), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return head.eval().requires_grad_(False)


@torch.no_grad()
def head_logits(head: Head, examples: Views, batch: int = 256) -> Floats:
    """[N] of the first view of ``examples``."""
    made = [np.zeros(0, np.float32)]
    for start in range(0, len(examples), batch):
        maps = torch.from_numpy(examples.maps[start : start + batch, 0].astype(np.float32))
        made.append(head(maps, torch.from_numpy(examples.states[start : start + batch])).numpy())
    return np.concatenate(made)


def _batches(
    examples: Views, done: NDArray[np.bool_], half: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches, the first ``half`` of each done and the second undone."""
    classes = [torch.from_numpy(np.flatnonzero(wanted)) for wanted in (done, ~done)]
    for _ in range(steps):
        rows = torch.cat([of[torch.randint(len(of), (half,), generator=generator)] for of in classes]).numpy()
        views = torch.randint(examples.maps.shape[1], (2 * half,), generator=generator).numpy()
        maps = examples.maps[rows, views].astype(np.float32)
        yield torch.from_numpy(maps), torch.from_numpy(examples.states[rows])


@torch.no_grad()
def _standardise(head: Head, examples: Views) -> None:
    first = examples.maps[:, 0].astype(np.float32)
    head.mean.copy_(torch.from_numpy(first.mean((0, 2, 3)))[:, None, None])
    head.scale.copy_(1 / (torch.from_numpy(first.std((0, 2, 3)))[:, None, None] + 1e-6))
    if examples.states.shape[1]:
        head.state_mean.copy_(torch.from_numpy(examples.states.mean(0)))
        spread = torch.from_numpy(examples.states.std(0))
        # A dimension that never moved in training is left out, not blown up at its first move.
        head.state_scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0.0))
