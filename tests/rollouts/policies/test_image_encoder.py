"""RoboFuME's encoder: its sizes, every layer from the definition, and its gradients."""

from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from rollouts.envs.types import IMAGE, STATE
from rollouts.policies.config import PolicyConfig, PolicyError
from rollouts.policies.encoders import RobofumeEncoder, build_encoder
from rollouts.policies.gaussian import GaussianPolicy


def config(size: tuple[int, int], **changes: Any) -> PolicyConfig:
    return PolicyConfig(state_size=2, action_size=1, image_size=size, encoder="robofume", hidden=(4,), **changes)


def encoder(size: tuple[int, int], **changes: Any) -> RobofumeEncoder:
    return RobofumeEncoder(config(size, **changes), torch.Generator().manual_seed(0))


def test_the_sizes_of_the_paper() -> None:
    # 100 pixels: (100 - 3) // 2 + 1 = 49, then 47, 45, 43.
    assert encoder((100, 100)).size == 43 * 43 * 32
    assert encoder((15, 21)).size == 1 * 4 * 32
    assert encoder((84, 84), strides=(2, 2, 2, 1)).size == 7 * 7 * 32
    assert encoder((84, 84), image_features=50).size == 50


def test_every_layer_from_its_definition() -> None:
    module = encoder((17, 19)).double()
    generator = torch.Generator().manual_seed(1)
    for parameters in (module.biases, module.scales, module.shifts):
        for parameter in parameters:
            torch.nn.init.normal_(parameter, generator=generator)
    images = torch.randint(0, 256, (3, 17, 19, 3), generator=generator, dtype=torch.uint8)
    x = images.permute(0, 3, 1, 2).double() / 255 - 0.5
    for layer, stride in enumerate((2, 1, 1, 1)):
        x = conv2d(x, module.kernels[layer], module.biases[layer], stride)
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        scale, shift = (p[layer].view(1, 32, 1, 1) for p in (module.scales, module.shifts))
        x = torch.relu((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
    expected = x.permute(0, 2, 3, 1).reshape(3, -1)
    torch.testing.assert_close(module(images), expected, atol=1e-10, rtol=1e-8)


def test_gradients_reach_every_weight() -> None:
    module = encoder((17, 17), image_features=6)
    module(torch.randint(0, 256, (4, 17, 17, 3), dtype=torch.uint8, generator=torch.Generator())).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_a_policy_sees_state_and_image_side_by_side_and_another_encoder_in_its_place() -> None:
    network = GaussianPolicy(config((17, 17), image_features=6), seed=1)
    other = build_encoder(network.config, torch.Generator().manual_seed(5))
    seen = {STATE: torch.ones(2, 2), IMAGE: torch.full((2, 17, 17, 3), 200, dtype=torch.uint8)}
    features = network.features(seen, torch.empty(2, 0))
    assert features.shape == (2, 8) and features[:, :2].tolist() == [[1, 1], [1, 1]]
    replaced = network.features(seen, torch.empty(2, 0), other)
    assert torch.equal(replaced[:, :2], features[:, :2]) and not torch.equal(replaced[:, 2:], features[:, 2:])
    assert not {id(p) for p in network.actor_parameters()} & {id(p) for p in network.encoder.parameters()}  # type: ignore[union-attr]


def test_none_is_none_and_small_images_are_refused() -> None:
    assert build_encoder(PolicyConfig(state_size=2, action_size=1), torch.Generator()) is None
    with pytest.raises(PolicyError, match="too small"):
        encoder((14, 14))
