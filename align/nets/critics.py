"""Ensembles of Q-functions. ``E`` members, ``B`` states, ``N`` actions for each, ``A`` dimensions, ``F`` features."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


@final
class CriticEnsemble(nn.Module):
    """``E`` multilayer perceptrons ``Q(features, action)``, computed as one batched product a layer.

    Each hidden layer is linear, LayerNorm (unless ``normalise`` is false), ReLU. LayerNorm has no scale and shift of
    its own: what RLPD needs of it is that the last hidden layer is bounded, and so the values of actions that no data
    shows (arXiv 2302.02948, section 4.2); the next layer's weights can do the rest, and a quarter of the time is saved.
    The first layer is split into what a state and what an action adds, so that the ``N`` actions of a state share the
    work on its features, which an instruction's embedding makes the larger part.

    Weights are orthogonal (gain sqrt(2), the last 0.01), each member its own, drawn from ``seed``.
    """

    def __init__(
        self,
        feature_size: int,
        action_size: int,
        *,
        members: int,
        hidden: tuple[int, ...],
        normalise: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.members = members
        self.normalise = normalise
        generator = torch.Generator().manual_seed(seed)

        def weights(inputs: int, outputs: int, gain: float) -> Tensor:
            stack = torch.empty(members, inputs, outputs)
            for member in stack:
                nn.init.orthogonal_(member, gain, generator=generator)
            return stack

        first = weights(feature_size + action_size, hidden[0], math.sqrt(2))
        self.on_features = nn.Parameter(first[:, :feature_size].clone())
        self.on_actions = nn.Parameter(first[:, feature_size:].clone())
        self.weights = nn.ParameterList(nn.Parameter(weights(a, b, math.sqrt(2))) for a, b in pairwise(hidden))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, size)) for size in hidden)
        self.output = nn.Parameter(weights(hidden[-1], 1, 0.01))
        self.output_bias = nn.Parameter(torch.zeros(members, 1, 1))

    def forward(self, features: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Values of ``actions`` [B, N, A] in states with ``features`` [B, F]: [E, B, N].

        ``members`` (indices) computes those members alone, in that order.
        """
        batch, count, size = actions.shape

        def of(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter[members]

        on_actions = of(self.on_actions)
        chosen = len(on_actions)
        by_state = torch.baddbmm(of(self.biases[0]), features.expand(chosen, -1, -1), of(self.on_features))
        by_action = torch.bmm(actions.reshape(1, batch * count, size).expand(chosen, -1, -1), on_actions)
        x = by_action.view(chosen, batch, count, -1) + by_state.unsqueeze(2)
        x = self._activate(x.view(chosen, batch * count, -1))
        for weight, bias in zip(self.weights, list(self.biases)[1:], strict=True):
            x = self._activate(torch.baddbmm(of(bias), x, of(weight)))
        return torch.baddbmm(of(self.output_bias), x, of(self.output)).view(chosen, batch, count)

    def _activate(self, x: Tensor) -> Tensor:
        return (layer_norm(x, x.shape[-1:]) if self.normalise else x).relu_()


@torch.no_grad()
def polyak(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """``target <- (1 - tau) target + tau online``, in place."""
    for slow, fast in zip(target, online, strict=True):
        slow.lerp_(fast, tau)
