"""Image encoders. ``B`` images, ``H`` and ``W`` pixels, ``D`` features."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, layer_norm

from rollouts.policies.config import PolicyConfig, PolicyError

CHANNELS = 32
KERNEL = 3


class RobofumeEncoder(nn.Module):
    """RoboFuME's four convolutions: uint8 [B, H, W, 3] to [B, D].

    ``x / 255 - 0.5``, then four times a 3x3 convolution to 32 channels without padding, LayerNorm over the channels of
    each pixel (epsilon 1e-5) and ReLU, with strides 2, 1, 1, 1; then flattened, row by row. With ``image_features`` a
    linear layer, LayerNorm and tanh follow.

    Source: Yang et al., "Robot Fine-Tuning Made Easy", arXiv 2310.15145; the layers as in the encoder of that name in
    the PA-RL code (github.com/MaxSobolMark/PolicyAgnosticRL, ``jaxrl_m/vision/robofume_encoders.py``).
    """

    def __init__(self, config: PolicyConfig, generator: Generator) -> None:
        super().__init__()
        if config.image_size is None:
            raise PolicyError("an image encoder needs image_size")
        height, width = config.image_size
        self.strides = config.strides
        self.kernels = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.scales = nn.ParameterList()
        self.shifts = nn.ParameterList()
        channels = 3
        for stride in config.strides:
            height, width = ((size - KERNEL) // stride + 1 for size in (height, width))
            kernel = torch.empty(CHANNELS, channels, KERNEL, KERNEL)
            nn.init.normal_(kernel, std=1 / math.sqrt(channels * KERNEL**2), generator=generator)
            self.kernels.append(nn.Parameter(kernel.contiguous(memory_format=torch.channels_last)))
            self.biases.append(nn.Parameter(torch.zeros(CHANNELS)))
            self.scales.append(nn.Parameter(torch.ones(CHANNELS)))
            self.shifts.append(nn.Parameter(torch.zeros(CHANNELS)))
            channels = CHANNELS
        if height < 1 or width < 1:
            raise PolicyError(f"images of {config.image_size} pixels are too small for strides {config.strides}")
        flat = height * width * CHANNELS
        self.projection = linear(flat, config.image_features, 1.0, generator) if config.image_features else None
        self.size = config.image_features or flat
        """``D``."""

    def forward(self, images: Tensor) -> Tensor:
        x = (images.to(self.biases[0].dtype) / 255 - 0.5).permute(0, 3, 1, 2)
        layers = zip(self.kernels, self.biases, self.scales, self.shifts, self.strides, strict=True)
        for kernel, bias, scale, shift, stride in layers:
            pixels = conv2d(x, kernel, bias, stride).permute(0, 2, 3, 1)
            x = layer_norm(pixels, (CHANNELS,), scale, shift, 1e-5).relu_().permute(0, 3, 1, 2)
        flat = x.permute(0, 2, 3, 1).flatten(1)
        if self.projection is None:
            return flat
        return torch.tanh(layer_norm(self.projection(flat), (self.size,)))


def build_encoder(config: PolicyConfig, generator: Generator) -> RobofumeEncoder | None:
    """The encoder that ``config`` names, its weights drawn from ``generator``; None where there are no images."""
    return None if config.encoder == "none" else RobofumeEncoder(config, generator)


def linear(inputs: int, outputs: int, gain: float, generator: Generator) -> nn.Linear:
    """A linear layer with orthogonal weights of the given gain and no bias at first, drawn from ``generator``."""
    # The layer's own initialisation would draw from the global generator; there are no numbers to draw on "meta".
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
