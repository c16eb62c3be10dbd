"""The scalar head of a policy discriminator."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class FloatHead(nn.Linear):
    """A bias-free map from the last hidden state to one number, in float32 whatever the rest of the model computes in.

    Scores have a spread of about ten, where neighbouring bfloat16 numbers are 0.06 apart: candidates would tie, and the
    difference that the Bradley-Terry loss is made of would be rounded before it is taken.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, 1, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` [..., H] to [..., 1] in float32; autocast does not reach it."""
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), self.weight.float())
