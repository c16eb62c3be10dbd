"""Values derived by hand from the papers' formulas; gradients from their closed forms; float64 throughout."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.losses.preference import dpo_loss, xpo_bonus, xpo_loss


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_by_hand() -> None:
    # h = (-10 + 12) - (-20 + 18) = 4; beta h = 0.4; -log sigmoid(0.4) = log(1 + e^-0.4)
    loss = dpo_loss(t(-10), t(-20), t(-12), t(-18), beta=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.4)), abs=1e-12)


def test_dpo_at_the_reference_is_log_two() -> None:
    x = t(-3, -40)
    assert dpo_loss(x, x - 1, x, x - 1, beta=0.5).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)


def test_bonus_takes_the_reference_side() -> None:
    # chosen ratio 2, rejected ratio -2
    args = (t(-10, -10), t(-20, -20), t(-12, -12), t(-18, -18))
    bonus = xpo_bonus(*args, torch.tensor([True, False]), alpha=0.5)
    assert bonus.tolist() == [1.0, -1.0]


def test_bonus_clip_is_on_the_ratio() -> None:
    args = (t(-10, -900), t(0, 0), t(-900, -10), t(0, 0))
    bonus = xpo_bonus(*args, torch.tensor([True, True]), alpha=0.5, bonus_clip=500.0)
    assert bonus.tolist() == [250.0, -250.0]


def test_gradients_match_the_closed_form() -> None:
    # dL/d policy_chosen = -beta w + alpha [chosen is the reference's], w = sigmoid(-beta h); the mirror for rejected.
    beta, alpha = 0.1, 0.03
    chosen, rejected = t(-10, -11).requires_grad_(), t(-20, -9).requires_grad_()
    ref_chosen, ref_rejected = t(-12, -10), t(-18, -10)
    ref_is_chosen = torch.tensor([True, False])
    xpo_loss(chosen, rejected, ref_chosen, ref_rejected, ref_is_chosen, beta=beta, alpha=alpha).sum().backward()
    h = [4.0, -2.0]
    w = [1 / (1 + math.exp(beta * x)) for x in h]
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-beta * w[0] + alpha, -beta * w[1]], abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([beta * w[0], beta * w[1] + alpha], abs=1e-12)


finite = st.floats(-200, 0)


@given(st.lists(st.tuples(finite, finite, finite, finite, st.booleans()), min_size=1, max_size=6), st.floats(0.01, 2))
def test_alpha_zero_is_bitwise_dpo(rows: list[tuple[float, float, float, float, bool]], beta: float) -> None:
    pc, pr, rc, rr = (t(*(row[i] for row in rows)) for i in range(4))
    ref = torch.tensor([row[4] for row in rows])
    assert torch.equal(xpo_loss(pc, pr, rc, rr, ref, beta=beta, alpha=0.0), dpo_loss(pc, pr, rc, rr, beta=beta))


@given(finite, finite, st.floats(1e-6, 1))
def test_bonus_is_alpha_log_pi_up_to_a_constant(policy: float, other: float, alpha: float) -> None:
    # Two policies that differ only on the reference sample differ in loss by alpha times the difference of log pi.
    ref = torch.tensor([False])
    bonuses = [
        xpo_bonus(t(0), t(logp), t(0), t(-50), ref, alpha=alpha, bonus_clip=1e9).item() for logp in (policy, other)
    ]
    assert bonuses[0] - bonuses[1] == pytest.approx(alpha * (policy - other), abs=1e-9)


def test_a_step_with_the_bonus_lowers_the_reference_sample() -> None:
    # The wrong-sign detector: two arms, the pair's gradient switched off by beta -> 0.
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(logits, 0)
    start = logp.detach()
    xpo_loss(
        logp[0:1], logp[1:2], start[0:1], start[1:2], torch.tensor([False]), beta=1e-12, alpha=1.0
    ).sum().backward()
    with torch.no_grad():
        logits -= 0.1 * logits.grad  # type: ignore[operator]
    assert torch.log_softmax(logits, 0)[1] < start[1]


def test_two_arm_fixed_point() -> None:
    # Arms a and b, tau~ = b always, a preferred with frequency p: the minimiser over theta = log-odds of a satisfies
    # sigmoid(beta (theta - theta_ref)) = p + (alpha / beta) pi(a).
    beta, alpha, p, theta_ref = 0.5, 0.05, 0.7, -0.4
    theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    ref = torch.nn.functional.logsigmoid(torch.tensor([theta_ref, -theta_ref], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-14, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        a, b = torch.nn.functional.logsigmoid(theta)[None], torch.nn.functional.logsigmoid(-theta)[None]
        wins = xpo_loss(a, b, ref[:1], ref[1:], torch.tensor([False]), beta=beta, alpha=alpha)
        losses = xpo_loss(b, a, ref[1:], ref[:1], torch.tensor([True]), beta=beta, alpha=alpha)
        loss = (p * wins + (1 - p) * losses).sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    x = theta.item()
    left = 1 / (1 + math.exp(-beta * (x - theta_ref)))
    assert left == pytest.approx(p + alpha / beta / (1 + math.exp(-x)), abs=1e-6)


@given(st.lists(st.tuples(finite, finite, finite, finite, st.booleans()), min_size=1, max_size=6), st.floats(0, 1))
def test_the_bonus_adds_alpha_times_the_mean_log_ratio(
    rows: list[tuple[float, float, float, float, bool]], alpha: float
) -> None:
    pc, pr, rc, rr = (t(*(row[i] for row in rows)) for i in range(4))
    ref = torch.tensor([row[4] for row in rows])
    losses = [xpo_loss(pc, pr, rc, rr, ref, beta=0.1, alpha=a).mean().item() for a in (alpha, 0.0)]
    ratios = [row[0] - row[2] if row[4] else row[1] - row[3] for row in rows]
    assert losses[0] - losses[1] == pytest.approx(alpha * sum(ratios) / len(ratios), abs=1e-9)


@pytest.mark.parametrize("ref_is_chosen", [True, False])
def test_the_more_alpha_the_less_likely_the_reference_sample_after_a_step(ref_is_chosen: bool) -> None:
    # Three arms: the policy's sample, the reference's sample, and the rest. The wrong sign would turn the order round.
    def after_a_step(alpha: float) -> float:
        logits = t(0.3, -0.2, 0.1).requires_grad_()
        logp = torch.log_softmax(logits, 0)
        own, other = (1, 0) if ref_is_chosen else (0, 1)
        sides = (logp[own : own + 1], logp[other : other + 1], t(-1), t(-1))
        xpo_loss(*sides, torch.tensor([ref_is_chosen]), beta=0.1, alpha=alpha).sum().backward()
        assert logits.grad is not None
        return torch.log_softmax((logits - logits.grad).detach(), 0)[1].item()

    likelihoods = [after_a_step(alpha) for alpha in (0.0, 0.01, 0.05, 0.2)]
    assert likelihoods == sorted(likelihoods, reverse=True) and likelihoods[0] > likelihoods[-1] + 1e-2


REWARDS = (1.0, 0.4, 0.0, -0.5)
ARM_BETA = 0.5


def four_arm_optimum(alpha: float) -> tuple[list[float], list[float]]:
    """(policy, reference) probabilities at the minimum of the population loss, all 16 pairs of arms enumerated.

    The first arm of a pair comes from a uniform policy, the second from the reference; labels are Bradley-Terry.
    """
    ref = torch.log_softmax(t(0.5, 0.0, -0.3, 0.2), 0)
    reward = t(*REWARDS)
    a, b = (x.reshape(-1) for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    weight = ref.exp()[b] / 4
    wins = torch.sigmoid(reward[a] - reward[b])
    theta = ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, history_size=20)
    no = torch.zeros(16, dtype=torch.bool)

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        pi = torch.log_softmax(theta, 0)
        first = xpo_loss(pi[a], pi[b], ref[a], ref[b], no, beta=ARM_BETA, alpha=alpha)
        second = xpo_loss(pi[b], pi[a], ref[b], ref[a], ~no, beta=ARM_BETA, alpha=alpha)
        loss = (weight * (wins * first + (1 - wins) * second)).sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return torch.softmax(theta.detach(), 0).tolist(), ref.exp().tolist()


def test_four_arms_without_bonus_recover_the_rewards() -> None:
    # The minimum of a Bradley-Terry cross-entropy has beta (log-ratio(a) - log-ratio(b)) = reward(a) - reward(b).
    pi, ref = four_arm_optimum(alpha=0.0)
    implicit = [ARM_BETA * math.log(p / q) for p, q in zip(pi, ref, strict=True)]
    for k in range(1, 4):
        assert implicit[0] - implicit[k] == pytest.approx(REWARDS[0] - REWARDS[k], abs=1e-6)
    # In closed form: pi(a) is proportional to ref(a) exp(reward(a) / beta).
    raw = [q * math.exp(r / ARM_BETA) for q, r in zip(ref, REWARDS, strict=True)]
    assert pi == pytest.approx([x / sum(raw) for x in raw], abs=1e-6)


def test_four_arms_with_the_bonus_balance_both_terms() -> None:
    # With logits theta, d log pi(a) / d theta_k = [a = k] - pi_k. In a difference of two log pi the pi_k cancel, so
    # d L / d theta_k = sum_ab (ref_b / 4) beta (sigmoid(beta Delta_ab) - P_ab) ([a = k] - [b = k])
    #                   + alpha (ref_k - pi_k), which is 0 at the minimum; Delta_ab the difference of log-ratios.
    alpha = 0.02
    pi, ref = four_arm_optimum(alpha)
    ratio = [math.log(p / q) for p, q in zip(pi, ref, strict=True)]

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    for k in range(4):
        pull = sum(
            ref[b]
            / 4
            * ARM_BETA
            * (logistic(ARM_BETA * (ratio[a] - ratio[b])) - logistic(REWARDS[a] - REWARDS[b]))
            * ((a == k) - (b == k))
            for a in range(4)
            for b in range(4)
        )
        assert pull == pytest.approx(alpha * (pi[k] - ref[k]), abs=1e-8)
    # And the optimism: what the reference says becomes less likely than without the bonus.
    plain, _ = four_arm_optimum(alpha=0.0)
    spoken = [sum(q * math.log(p) for p, q in zip(policy, ref, strict=True)) for policy in (pi, plain)]
    assert spoken[0] < spoken[1] - 1e-3
