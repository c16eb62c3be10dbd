"""Actor-critic losses: values by hand, what gradients reach, limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.losses.actor import actor_loss, imitation_squared, imitation_weight, masked_mean, temperature_loss
from align.losses.actor_critic import (
    conservative_gap,
    lagrange_loss,
    lagrange_multiplier,
    outside,
    random_subset,
    td_loss,
    td_target,
)


def t(values: object, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def value(tensor: Tensor) -> list[float]:
    """All entries, row by row."""
    return pytest.approx(tensor.flatten().tolist())  # type: ignore[no-any-return]


# Two critics, two transitions, two actions each. The worst critic of transition 0 says -3 and -2, of 1 says -4 and -5.
NEXT_Q = t([[[-1, -2], [-4, -5]], [[-3, 0], [0, 0]]])


def test_the_target_takes_the_best_action_under_the_worst_critic() -> None:
    # -1 + 0.9 * -2 and, at the end of a task, 0 + 0 * -4
    assert value(td_target(t([-1, 0]), t([0.9, 0]), NEXT_Q)) == [-2.8, 0]


def test_the_target_of_one_action_is_that_of_soft_actor_critic() -> None:
    # -1 + 0.9 * -3 without its entropy; with temperature 0.5 and log pi 2: -1 + 0.9 * (-3 - 1)
    assert value(td_target(t([-1]), t([0.9]), NEXT_Q[:, :1, :1])) == [-3.7]
    assert value(td_target(t([-1]), t([0.9]), NEXT_Q[:, :1, :1], t([[2]]), 0.5)) == [-4.6]


def test_the_entropy_in_the_target_is_that_of_the_action_that_was_taken() -> None:
    # Transition 0 takes its second action (log pi 4), 1 its first (log pi 1); temperature 0.5, discount 1.
    logps = t([[100, 4], [1, 100]])
    assert value(td_target(t([0, 0]), t([1, 1]), NEXT_Q, logps, 0.5)) == [-2 - 2, -4 - 0.5]


def test_no_gradient_flows_through_the_target() -> None:
    q = t([[[1.0]]], grad=True)
    assert not td_target(t([0]), t([1]), q).requires_grad


def test_the_td_loss_is_the_square_for_every_critic() -> None:
    assert value(td_loss(t([[1, 2], [3, 4]]), t([0, 5]))) == [1, 9, 9, 1]


# One critic, one transition, A = 1: log 0.5^1 = -log 2. Q of a random action -1, of policy actions -3 and -2 with
# densities 1 and e; the data's action -2.
GAP = {
    "q_data": t([[-2]]),
    "q_random": t([[[-1]]]),
    "q_policy": t([[[-3, -2]]]),
    "logp_policy": t([[0, 1]]),
}


def test_the_conservative_gap_by_hand() -> None:
    # log(2 e^-1 + e^-3 + e^-3) + 2
    gap, calibrated = conservative_gap(**GAP, action_size=1, mc_returns=None)
    assert value(gap) == [math.log(2 * math.exp(-1) + 2 * math.exp(-3)) + 2]
    assert float(calibrated) == 0


def test_calibration_lifts_policy_actions_to_the_return_and_no_others() -> None:
    # V = -1.5 is above both policy actions, and below the random one: log(2 e^-1 + e^-1.5 + e^-2.5) + 2
    gap, calibrated = conservative_gap(**GAP, action_size=1, mc_returns=t([-1.5]))
    assert value(gap) == [math.log(2 * math.exp(-1) + math.exp(-1.5) + math.exp(-2.5)) + 2]
    assert float(calibrated) == 1
    # V = 0 is above the random action too, which stays at -1: log(2 e^-1 + e^0 + e^-1) + 2
    gap, _ = conservative_gap(**GAP, action_size=1, mc_returns=t([0]))
    assert value(gap) == [math.log(2 * math.exp(-1) + 1 + math.exp(-1)) + 2]
    # V = -2.5 is above one of the two.
    assert float(conservative_gap(**GAP, action_size=1, mc_returns=t([-2.5])).calibrated) == 0.5


def test_the_volume_of_the_action_space_counts() -> None:
    # In three dimensions a uniform action has density 1/8: log(8 e^-1 + 2 e^-3) + 2
    gap, _ = conservative_gap(**GAP, action_size=3, mc_returns=None)
    assert value(gap) == [math.log(8 * math.exp(-1) + 2 * math.exp(-3)) + 2]


def test_without_importance_sampling_the_data_joins_the_sum() -> None:
    # log(e^-1 + e^-2 + e^-3 + e^-2) + 2, and at temperature 2: 2 log(e^-1/2 + e^-1 + e^-3/2 + e^-1) + 2
    gap, _ = conservative_gap(**GAP, action_size=1, mc_returns=None, importance_sampling=False)
    assert value(gap) == [math.log(math.exp(-1) + 2 * math.exp(-2) + math.exp(-3)) + 2]
    gap, _ = conservative_gap(**GAP, action_size=1, mc_returns=None, importance_sampling=False, temperature=2)
    assert value(gap) == [2 * math.log(math.exp(-0.5) + 2 * math.exp(-1) + math.exp(-1.5)) + 2]


def test_a_bounded_action_is_pushed_no_further() -> None:
    q = {name: values.clone().requires_grad_() for name, values in GAP.items()}
    conservative_gap(**q, action_size=1, mc_returns=t([-2.5])).gap.sum().backward()
    grads = {name: values.grad for name, values in q.items()}
    # -3 is below V and gets nothing, -2 is above; the data's action gets -1, densities are constants.
    assert grads["q_policy"] is not None and grads["q_policy"][0, 0, 0] == 0 and grads["q_policy"][0, 0, 1] > 0
    assert grads["q_random"] is not None and grads["q_random"][0, 0, 0] > 0
    assert grads["q_data"] is not None and grads["q_data"].tolist() == [[-1]]
    assert grads["logp_policy"] is None


numbers = st.floats(-20, 5)


@given(st.lists(numbers, min_size=2, max_size=2), st.lists(numbers, min_size=3, max_size=3), numbers, numbers)
def test_calibration_never_narrows_the_gap_and_vanishes_below_all_values(
    random: list[float], policy: list[float], data: float, floor: float
) -> None:
    q = (t([[data]]), t([[random]]), t([[policy]]), t([[0.3, -0.2, 1.0]]))
    plain = conservative_gap(*q, action_size=2, mc_returns=None).gap
    calibrated = conservative_gap(*q, action_size=2, mc_returns=t([floor])).gap
    assert float(calibrated) >= float(plain) - 1e-12
    if floor < min(policy):
        assert torch.equal(calibrated, plain)


def test_the_lagrange_multiplier_by_hand() -> None:
    log = t(math.log(2), grad=True)
    assert float(lagrange_multiplier(log.detach())) == pytest.approx(2)
    assert float(lagrange_multiplier(t(100.0))) == 1e6
    # Gaps of mean 3, target 1, alpha 5: -2 * 5 * 2 = -20, and so is its slope: the multiplier grows.
    loss = lagrange_loss(log, t([[2, 4]]), target_gap=1, alpha=5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-20)
    assert float(log.grad or 0) == pytest.approx(-20)
    # A gap narrower than the target weakens it.
    assert float(lagrange_loss(log.detach(), t([[0.5]]), target_gap=1, alpha=5)) == pytest.approx(5)


def test_a_subset_is_of_different_members_and_comes_from_the_generator() -> None:
    drawn = [random_subset(10, 2, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert all(len(set(pair)) == 2 and max(pair) < 10 for pair in drawn)
    every = {m for s in range(99) for m in random_subset(10, 2, torch.Generator().manual_seed(s)).tolist()}
    assert every == set(range(10))


def test_values_outside_what_returns_can_be_are_counted() -> None:
    # [-100, 0] with a slack of 1: -102 and 2 are outside, -100.5 and 0.5 are not.
    assert float(outside(t([[-102, -100.5], [0.5, 2]]), -100, 0)) == 0.5


def test_the_actor_by_hand() -> None:
    q, logps = t([[-1, -5], [-3, -1]]), t([2, -2])
    # temperature 0.5: 1 + 3, -1 + 5 under the worst critic; 1 + 2, -1 + 3 under the mean.
    assert value(actor_loss(q, logps, 0.5, reduction="min")) == [4, 4]
    assert value(actor_loss(q, logps, 0.5, reduction="mean")) == [3, 2]


def test_the_temperature_rises_while_the_entropy_is_too_low() -> None:
    log = t(0.7, grad=True)
    # Mean log pi 3, target entropy -2: the entropy -3 is below it; loss -0.7 * 1, slope -1.
    loss = temperature_loss(log, t([2, 4]), -2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.7)
    assert float(log.grad or 0) == pytest.approx(-1)


def test_imitation_by_hand() -> None:
    assert value(imitation_squared(t([[1, 0], [0, 0]]), t([[0, 2], [0, 0]]))) == [5, 0]
    assert float(masked_mean(t([1, 2, 6]), torch.tensor([True, False, True]))) == 3.5
    assert float(masked_mean(t([1, 2]), torch.tensor([False, False]))) == 0


def test_the_weight_of_imitation_by_hand() -> None:
    rl, bc, q = t([-6, 2]), t([1, 9]), t([[-3, -5]])
    mask = torch.tensor([True, False])

    def weight(scaling: str, floor: float = 0.1, w: float = 0.5) -> float:
        return float(imitation_weight(rl, bc, q, mask, scaling=scaling, weight=w, floor=floor))  # type: ignore[arg-type]

    assert weight("none") == 0
    assert weight("fixed") == 0.5
    assert weight("value") == 0.5 * 4
    assert weight("loss_ratio") == 0.5 * 4 / 1
    assert weight("loss_ratio", floor=2) == 0.5 * 4 / 2


@given(st.floats(0.01, 100), st.floats(0.2, 100))
def test_the_ratio_makes_both_losses_of_one_size_and_is_a_constant(scale: float, size: float) -> None:
    rl, bc = scale * t([-3.0, 5.0], grad=False), (size * t([1.0, 2.0])).requires_grad_()
    mask = torch.tensor([True, True])
    weight = imitation_weight(rl, bc, t([[0.0]]), mask, scaling="loss_ratio", weight=1, floor=0.1)
    assert isinstance(weight, Tensor) and not weight.requires_grad
    assert float((weight * masked_mean(bc, mask)).detach()) == pytest.approx(float(rl.abs().mean()))
