"""The losses around DPO: values by hand where TRL has none to compare with, gradients, limits and refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.losses.preference import (
    aot_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    cdpo_loss,
    discopop_loss,
    dpo_loss,
    exo_loss,
    hinge_loss,
    ipo_loss,
    ipo_norm_loss,
    kto_loss,
    nca_loss,
    robust_loss,
    sft_loss,
    simpo_loss,
    sppo_loss,
)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One pair with chosen log-ratio c = -10 + 12 = 2 and rejected log-ratio r = -20 + 18 = -2, so h = 4.
PAIR = (t(-10), t(-20), t(-12), t(-18))
BETA = 0.5  # beta c = 1, beta r = -1, beta h = 2, 1 / (2 beta) = 1

BY_HAND: dict[str, tuple[Tensor, float]] = {
    # (4 - 1)^2
    "ipo": (ipo_loss(*PAIR, beta=BETA), 9.0),
    # c per token 2 / 4, r per token -2 / 8: (0.5 + 0.25 - 1)^2
    "ipo_norm": (ipo_norm_loss(*PAIR, beta=BETA, chosen_length=t(4), rejected_length=t(8)), 0.0625),
    # max(0, 1 - 2) = 0 at beta 0.5; 1 - 0.1 * 4 at beta 0.1
    "hinge, satisfied": (hinge_loss(*PAIR, beta=BETA), 0.0),
    "hinge": (hinge_loss(*PAIR, beta=0.1), 0.6),
    # -0.8 log s(2) - 0.2 log s(-2), and -log s(-x) = x - log s(x): -log s(2) + 0.2 * 2
    "cdpo": (cdpo_loss(*PAIR, beta=BETA, label_smoothing=0.2), math.log1p(math.exp(-2)) + 0.4),
    # (-0.8 log s(2) + 0.2 log s(-2)) / 0.6 = (-0.6 log s(2) - 0.2 * 2) / 0.6
    "robust": (robust_loss(*PAIR, beta=BETA, label_smoothing=0.2), math.log1p(math.exp(-2)) - 2 / 3),
    # s(2) (log s(2) - log 0.8) + s(-2) (log s(-2) - log 0.2)
    "exo": (
        exo_loss(*PAIR, beta=BETA, label_smoothing=0.2),
        logistic(2) * math.log(logistic(2) / 0.8) + logistic(-2) * math.log(logistic(-2) / 0.2),
    ),
    # -log s(1) - log s(-1) / 2 - log s(1) / 2
    "nca": (nca_loss(*PAIR, beta=BETA), 1.5 * math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(1))),
    # -log s(1 - 0.25) - log s(1 + 0.25)
    "bco": (bco_loss(*PAIR, beta=BETA, delta=0.25), math.log1p(math.exp(-0.75)) + math.log1p(math.exp(-1.25))),
    # (2 - 1)^2 + (-2 + 1)^2
    "sppo": (sppo_loss(*PAIR, beta=BETA), 2.0),
    # 1 - s(1) + s(-1)
    "apo_zero": (apo_zero_loss(*PAIR, beta=BETA), 2 * logistic(-1)),
    # s(1) + 1 - s(2)
    "apo_down": (apo_down_loss(*PAIR, beta=BETA), logistic(1) + logistic(-2)),
    # x / tau = 2 / 0.5 = 4: -log s(2) s(-4) + e^-2 s(4)
    "discopop": (
        discopop_loss(*PAIR, beta=BETA, tau=0.5),
        math.log1p(math.exp(-2)) * logistic(-4) + math.exp(-2) * logistic(4),
    ),
    # means per token -10 / 5 = -2 and -20 / 4 = -5: -log s(0.5 * 3 - 0.25)
    "simpo": (
        simpo_loss(PAIR[0], PAIR[1], beta=BETA, gamma=0.25, chosen_length=t(5), rejected_length=t(4)),
        math.log1p(math.exp(-1.25)),
    ),
    # 10 nats over 4 tokens
    "sft": (sft_loss(PAIR[0], chosen_length=t(4)), 2.5),
    # z = 0.5: 1.5 (1 - s(0.5 * 1.5)) + 2 (1 - s(0.5 * 2.5))
    "kto": (
        kto_loss(*PAIR, beta=BETA, reference_point=0.5, desirable_weight=1.5, undesirable_weight=2.0),
        1.5 * (1 - logistic(0.75)) + 2 * (1 - logistic(1.25)),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_value_by_hand(name: str) -> None:
    loss, expected = BY_HAND[name]
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


# d loss / d policy_chosen and d loss / d policy_rejected, from s' = s (1 - s) and (-log s)'(x) = -s(-x).
GRADIENTS: dict[str, tuple[Callable[..., Tensor], dict[str, float], float, float]] = {
    "ipo": (ipo_loss, {}, 6.0, -6.0),  # 2 (h - 1) = 6
    "hinge": (hinge_loss, {"beta": 0.1}, -0.1, 0.1),
    # beta (s(beta h) - (1 - e))
    "cdpo": (cdpo_loss, {"label_smoothing": 0.2}, BETA * (logistic(2) - 0.8), -BETA * (logistic(2) - 0.8)),
    # beta (-(1 - e) s(-beta h) - e s(beta h)) / (1 - 2 e)
    "robust": (
        robust_loss,
        {"label_smoothing": 0.2},
        BETA * (-0.8 * logistic(-2) - 0.2 * logistic(2)) / 0.6,
        BETA * (0.8 * logistic(-2) + 0.2 * logistic(2)) / 0.6,
    ),
    # KL(q || p) of two outcomes, q = s(x): dKL/dq = log(q / (1 - q)) - log((1 - e) / e) = x - log 4
    "exo": (
        exo_loss,
        {"label_smoothing": 0.2},
        BETA * logistic(2) * logistic(-2) * (2 - math.log(4)),
        -BETA * logistic(2) * logistic(-2) * (2 - math.log(4)),
    ),
    "nca": (nca_loss, {}, BETA * (-logistic(-1) + 0.5 * logistic(1)), BETA * 0.5 * logistic(-1)),
    "bco": (bco_loss, {"delta": 0.25}, -BETA * logistic(-0.75), BETA * logistic(-1.25)),
    "sppo": (sppo_loss, {}, 2.0, -2.0),
    "apo_zero": (apo_zero_loss, {}, -BETA * logistic(1) * logistic(-1), BETA * logistic(1) * logistic(-1)),
    "apo_down": (
        apo_down_loss,
        {},
        BETA * (logistic(1) * logistic(-1) - logistic(2) * logistic(-2)),
        BETA * logistic(2) * logistic(-2),
    ),
    "simpo": (
        lambda pc, pr, rc, rr, **kw: simpo_loss(pc, pr, **kw),
        {"gamma": 1.0},
        -BETA * logistic(-4),
        BETA * logistic(-4),
    ),
    "kto": (
        kto_loss,
        {"reference_point": 0.5},
        -BETA * logistic(0.75) * logistic(-0.75),
        BETA * logistic(1.25) * logistic(-1.25),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_by_hand(name: str) -> None:
    loss, options, chosen_grad, rejected_grad = GRADIENTS[name]
    chosen, rejected = (x.clone().requires_grad_() for x in PAIR[:2])
    loss(chosen, rejected, *PAIR[2:], **{"beta": BETA, **options}).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((chosen_grad, rejected_grad), abs=1e-12)


def test_aot_matches_quantiles_and_keeps_the_order_of_the_pairs() -> None:
    # Margins of the policy 3, 1, 2 and of the reference 0, 10, 5. Ranks pair 3 with 10, 1 with 0 and 2 with 5, so
    # with beta 1 the arguments of -log s are -7, 1, -3, in the order of the pairs.
    policy, reference = (t(3, 1, 2), t(0, 0, 0)), (t(0, 10, 5), t(0, 0, 0))
    expected = [math.log1p(math.exp(x)) for x in (7, -1, 3)]
    assert aot_loss(*policy, *reference, beta=1.0).tolist() == pytest.approx(expected, abs=1e-12)
    # With smoothing e each also gets e times its own argument: -e log s(-x) = e x - e log s(x).
    smoothed = [y + 0.1 * x for y, x in zip(expected, (-7, 1, -3), strict=True)]
    assert aot_loss(*policy, *reference, beta=1.0, label_smoothing=0.1).tolist() == pytest.approx(smoothed, abs=1e-12)


finite = st.floats(-200, 0)
rows = st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=6)


def columns(values: list[tuple[float, float, float, float]]) -> tuple[Tensor, ...]:
    return tuple(t(*column) for column in zip(*values, strict=True))


@given(rows, st.floats(0.01, 2))
def test_unsmoothed_cdpo_and_robust_are_dpo(values: list[tuple[float, float, float, float]], beta: float) -> None:
    sides = columns(values)
    expected = dpo_loss(*sides, beta=beta)
    torch.testing.assert_close(cdpo_loss(*sides, beta=beta, label_smoothing=0.0), expected)
    torch.testing.assert_close(robust_loss(*sides, beta=beta, label_smoothing=0.0), expected)


@given(rows, st.floats(0.01, 0.49))
def test_robust_is_dpo_in_the_mean_over_flips(values: list[tuple[float, float, float, float]], e: float) -> None:
    pc, pr, rc, rr = columns(values)
    right = robust_loss(pc, pr, rc, rr, beta=0.3, label_smoothing=e)
    flipped = robust_loss(pr, pc, rr, rc, beta=0.3, label_smoothing=e)
    torch.testing.assert_close((1 - e) * right + e * flipped, dpo_loss(pc, pr, rc, rr, beta=0.3), rtol=1e-7, atol=1e-7)


@given(rows, st.floats(0, 1))
def test_soft_labels_are_the_mean_over_drawn_labels(values: list[tuple[float, float, float, float]], p: float) -> None:
    # A label drawn with probability p for "chosen" gives the soft loss in the mean, and one e for each pair is allowed.
    pc, pr, rc, rr = columns(values)
    soft = cdpo_loss(pc, pr, rc, rr, beta=0.3, label_smoothing=torch.full_like(pc, 1 - p))
    drawn = p * dpo_loss(pc, pr, rc, rr, beta=0.3) + (1 - p) * dpo_loss(pr, pc, rr, rc, beta=0.3)
    torch.testing.assert_close(soft, drawn)


@given(rows)
def test_bco_bounds_dpo_whatever_the_shift(values: list[tuple[float, float, float, float]]) -> None:
    # s(x) s(y) <= s(x + y), the paper's theorem 1; the shift cancels in the sum.
    sides = columns(values)
    for delta in (-3.0, 0.0, 3.0):
        assert bool((bco_loss(*sides, beta=0.2, delta=delta) >= dpo_loss(*sides, beta=0.2) - 1e-9).all())


@given(rows)
def test_kto_at_zero_is_apo_zero(values: list[tuple[float, float, float, float]]) -> None:
    sides = columns(values)
    torch.testing.assert_close(kto_loss(*sides, beta=0.2), apo_zero_loss(*sides, beta=0.2))


@given(rows, st.integers(1, 50), st.integers(1, 50))
def test_lengths_only_divide(values: list[tuple[float, float, float, float]], m: int, n: int) -> None:
    pc, pr, rc, rr = columns(values)
    c, r = torch.full_like(pc, m), torch.full_like(pc, n)
    means = (pc / m, pr / n, rc / m, rr / n)
    torch.testing.assert_close(
        ipo_norm_loss(pc, pr, rc, rr, beta=0.5, chosen_length=c, rejected_length=r), ipo_norm_loss(*means, beta=0.5)
    )
    torch.testing.assert_close(
        simpo_loss(pc, pr, beta=2.0, chosen_length=c, rejected_length=r), simpo_loss(means[0], means[1], beta=2.0)
    )
    torch.testing.assert_close(sft_loss(pc, chosen_length=c), sft_loss(means[0]))


def test_discopop_stays_finite_where_its_exponential_does_not() -> None:
    # x = -1000: e^1000 is infinite even in float64, its weight s(-20000) is 0; the loss is -log s(-1000) = 1000.
    chosen = t(-1000).requires_grad_()
    loss = discopop_loss(chosen, t(0), t(0), t(0), beta=1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1000.0)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-1.0)


def test_an_empty_completion_has_a_mean_of_zero() -> None:
    assert sft_loss(t(0), chosen_length=t(0)).item() == 0


@pytest.mark.parametrize("loss", [ipo_norm_loss, lambda pc, pr, rc, rr, **kw: simpo_loss(pc, pr, **kw)])
def test_one_length_alone_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="both chosen_length and rejected_length"):
        loss(*PAIR, beta=BETA, chosen_length=t(4))


@pytest.mark.parametrize(
    ("loss", "bad"),
    [
        (robust_loss, 0.5),
        (robust_loss, -0.1),
        (robust_loss, t(0.1, 0.7)),
        (cdpo_loss, 1.1),
        (exo_loss, 0.0),
        (exo_loss, t(0.0)),
        (aot_loss, -0.1),
        (cdpo_loss, math.nan),
    ],
)
def test_a_label_smoothing_outside_its_range_is_refused(loss: Callable[..., Tensor], bad: float | Tensor) -> None:
    with pytest.raises(ValueError, match=rf"{loss.__name__} needs a label_smoothing"):
        loss(*PAIR, beta=BETA, label_smoothing=bad)
