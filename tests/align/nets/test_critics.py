"""The batched ensemble against one network at a time, and slow copies by hand."""

import torch
from torch import Tensor

from align.nets.critics import CriticEnsemble, polyak


def ensemble(**changes: object) -> CriticEnsemble:
    settings: dict[str, object] = {"members": 3, "hidden": (6, 5), "seed": 1}
    return CriticEnsemble(4, 2, **(settings | changes)).double()  # type: ignore[arg-type]


def one_by_one(critics: CriticEnsemble, member: int, feature: Tensor, action: Tensor) -> Tensor:
    """One member's value of one action, from the definition."""
    first = torch.cat([critics.on_features[member], critics.on_actions[member]])
    x = torch.cat([feature, action])
    for weight, bias in zip([first, *(w[member] for w in critics.weights)], critics.biases, strict=True):
        x = x @ weight + bias[member, 0]
        if critics.normalise:
            x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        x = x.clamp(min=0)
    return (x @ critics.output[member] + critics.output_bias[member, 0]).squeeze()


def test_every_value_is_that_of_one_network() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    actions = torch.randn(5, 7, 2, generator=generator, dtype=torch.float64)
    for normalise in (True, False):
        critics = ensemble(normalise=normalise)
        for name, parameter in critics.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, generator=generator)
        got = critics(features, actions)
        assert got.shape == (3, 5, 7)
        expected = torch.stack(
            [
                torch.stack([torch.stack([one_by_one(critics, e, f, a) for a in row]) for f, row in rows])
                for e in range(3)
                for rows in [list(zip(features, actions, strict=True))]
            ]
        )
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(critics(features, actions, torch.tensor([2, 0])), got[[2, 0]])


def test_members_differ_and_the_seed_decides() -> None:
    first, same, other = ensemble(), ensemble(), ensemble(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.on_features, other.on_features)
    assert not torch.equal(first.on_features[0], first.on_features[1])


def test_building_one_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    ensemble()
    assert torch.equal(torch.get_rng_state(), before)


def test_last_hidden_layer_is_bounded_whatever_the_action() -> None:
    critics = ensemble()
    features = torch.zeros(1, 4, dtype=torch.float64)
    far = critics(features, torch.full((1, 1, 2), 1e6, dtype=torch.float64)).abs().max()
    # LayerNorm of 5 units has norm sqrt(5) at most, and a value the norm of the last weights times that.
    assert float(far.detach()) <= float(critics.output.detach().norm(dim=1).max()) * 5**0.5 + 1e-9


def test_polyak_by_hand() -> None:
    target, online = [torch.tensor([0.0, 4.0])], [torch.tensor([1.0, 0.0])]
    polyak(target, online, 0.25)
    assert target[0].tolist() == [0.25, 3.0]
    polyak(target, online, 1.0)
    assert target[0].tolist() == [1.0, 0.0]
