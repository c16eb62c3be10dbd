"""What learning consumes and reports. ``B`` pairs, ``L`` tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities in nats, [B] each, end-of-sequence token included."""

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
