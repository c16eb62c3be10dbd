"""The tanh-Gaussian actor. ``B`` observations, ``N`` actions for each, ``A`` dimensions, ``F`` features."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rollouts.engines.weight_files import check_shapes, tensors
from rollouts.envs.types import IMAGE, STATE
from rollouts.policies.config import PolicyConfig, PolicyError
from rollouts.policies.encoders import build_encoder, linear

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ACTION_LIMIT = 0.999
"""Given actions are brought within this before the inverse of tanh, which has no end at 1."""
NORMALISED_LIMIT = 10.0
"""States further than this many standard deviations from the mean are brought back to it."""


class GaussianPolicy(nn.Module):
    """A Gaussian through tanh whose mean and deviation a multilayer perceptron computes.

    It sees the state, made standard by ``state_mean`` and ``state_std`` (saved with the weights), the instruction's
    embedding, and the encoder's view of the image. All weights are drawn from ``seed``: hidden layers orthogonal with
    gain sqrt(2), the last with 0.01, so that a fresh policy acts around 0 everywhere.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: PolicyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.encoder = build_encoder(config, generator)
        self.feature_size = config.seen_size + config.instruction_size + (self.encoder.size if self.encoder else 0)
        """``F``."""
        sizes = (self.feature_size, *config.hidden)
        self.hidden = nn.ModuleList(linear(a, b, math.sqrt(2), generator) for a, b in pairwise(sizes))
        self.output = linear(sizes[-1], 2 * config.action_size, 0.01, generator)
        self.register_buffer("state_mean", torch.zeros(config.state_size))
        self.register_buffer("state_std", torch.ones(config.state_size))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """States are seen as ``(state - mean) / std`` [S] from now on; :class:`PolicyError` for a ``std`` of 0."""
        if not bool((std > 0).all()):
            raise PolicyError("a standard deviation of 0 cannot normalise: give it a floor")
        self.state_mean.copy_(mean)
        self.state_std.copy_(std)

    def actor_parameters(self) -> list[nn.Parameter]:
        """All parameters but the encoder's."""
        return [*self.hidden.parameters(), *self.output.parameters()]

    def features(
        self, observations: Mapping[str, Tensor], instructions: Tensor, encoder: nn.Module | None = None
    ) -> Tensor:
        """What actor and critics see, [B, F]: states [B, S], embeddings [B, I] and the encoder's features side by side.

        ``encoder`` takes the place of the policy's own: a target network has one of its own.
        """
        parts = []
        if self.config.state_size:
            state = (observations[STATE].to(self.state_mean.dtype) - self.state_mean) / self.state_std
            if self.config.state_columns is not None:
                state = state[:, self.config.state_columns]
            parts.append(state.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT))
        if self.config.instruction_size:
            parts.append(instructions.to(self.state_mean.dtype))
        if self.encoder is not None:
            parts.append((encoder or self.encoder)(observations[IMAGE]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, [B, A] each."""
        x = features
        for layer in self.hidden:
            x = layer(x).relu_()
        mean, log_std = self.output(x).chunk(2, dim=-1)
        config = self.config
        return mean, (log_std + config.log_std_offset).clamp(config.log_std_min, config.log_std_max)

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` to ``folder``, all or nothing; replaces what is there."""
        from safetensors.torch import save_file

        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary / WEIGHTS)
            text = json.dumps(self.config.to_json(), indent=1, allow_nan=False)
            (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except OSError as error:
            raise PolicyError(f"{folder}: the policy cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> "GaussianPolicy":
        """The policy that :meth:`save` wrote; raises :class:`PolicyError` where there is none."""
        try:
            content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise PolicyError(f"{folder} holds no policy: {CONFIG} is missing") from None
        except json.JSONDecodeError as error:
            raise PolicyError(f"{folder / CONFIG} is no JSON: {error}") from error
        policy = cls(PolicyConfig.from_json(content))
        policy.load_weights(folder / WEIGHTS)
        return policy

    def load_weights(self, file: Path) -> None:
        """Takes all weights from a safetensors file; raises :class:`PolicyError` unless it holds exactly those."""
        own = self.state_dict()
        try:
            check_shapes(file, {name: tuple(tensor.shape) for name, tensor in own.items()})
        except FileNotFoundError:
            raise PolicyError(f"no weights at {file}") from None
        except ValueError as error:
            raise PolicyError(f"these are not this policy's weights: {error}") from error
        with torch.no_grad():
            for name, tensor in tensors(file):
                own[name].copy_(tensor)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions ``tanh(mean + std * noise)`` [..., A] and their log-densities [...], in nats.

    ``noise`` is standard normal; the three broadcast, so that [B, 1, A] and [B, N, A] give ``N`` actions for each. The
    density of the tanh of ``u`` is corrected by ``log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))``, which neither
    overflows nor loses its digits where tanh is flat.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905, appendix C.
    """
    u = mean + log_std.exp() * noise
    return torch.tanh(u), _log_density(u, log_std, noise)


def log_density(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density [...] of given ``actions`` [..., A], in nats; their absolute values are cut at ``ACTION_LIMIT``."""
    u = torch.atanh(actions.clamp(-ACTION_LIMIT, ACTION_LIMIT))
    return _log_density(u, log_std, (u - mean) * (-log_std).exp())


def _log_density(u: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Of ``tanh(u)``: the normal's, minus the logarithm of the slope of tanh; constants are added last, and once."""
    constant = u.shape[-1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
    varying = 0.5 * noise.square() + log_std - 2 * (u + softplus(-2 * u))
    return -varying.sum(-1) - constant
