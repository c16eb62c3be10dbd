"""Actor-critic losses as pure functions: tensors in, tensors out, one loss for each sample unless said otherwise.

Letters: ``E`` critics of an ensemble, ``B`` transitions, ``N`` actions drawn for each state, ``A`` dimensions of an
action. Log-densities are natural logarithms. Q-learning's part is here, what the actor learns from in
:mod:`align.losses.actor`.

Cal-QL (Nakamoto et al., arXiv 2303.05479, equation 5.1) minimises over the critics

    alpha ( E_{s, a ~ pi} [max(Q(s, a), V(s))] - E_{s, a ~ D} [Q(s, a)] ) + 1/2 E_D [(Q - r - gamma Q'(s', a'))^2]

where ``V`` is the Monte-Carlo return of the behaviour. The authors' code (github.com/nakamotoo/Cal-QL) computes the
first expectation as an importance-sampled logsumexp, and leaves out the factor 1/2 of the second, so that its
``alpha`` is twice the paper's; so do :func:`conservative_gap`, :func:`td_loss` and the learners here.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import relu


def td_target(
    rewards: Tensor,
    discounts: Tensor,
    next_q: Tensor,
    next_logps: Tensor | None = None,
    temperature: float | Tensor = 0.0,
) -> Tensor:
    """``r + discount * max_n min_e Q'(s', a'_n)``, [B]; no gradient flows through it.

    ``next_q`` [E, B, N] are a target ensemble's values of ``N`` actions of the policy. With ``N`` = 1 it is the backup
    of SAC and RLPD, whose ``E`` is a random subset of the ensemble (:func:`random_subset`); with more the "max-target
    backup" of CQL and Cal-QL, the best of the actions under the worst of the critics. ``discounts`` [B] is gamma to
    the number of steps, 0 where the task is over: a cut episode keeps its bootstrap.

    With ``next_logps`` [B, N] the entropy is backed up too: ``- discount * temperature * log pi`` of the very action
    that was taken. The published settings for sparse rewards leave it out (RLPD ``backup_entropy=False``).

    Sources: Cal-QL code, ``JaxCQL/conservative_sac.py`` lines 176-201; RLPD code (github.com/ikostrikov/rlpd),
    ``rlpd/agents/sac/sac_learner.py``, ``update_critic``.
    """
    values, best = next_q.min(dim=0).values.max(dim=-1)
    if next_logps is not None:
        values = values - temperature * next_logps.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return (rewards + discounts * values).detach()


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """``(Q(s, a) - target)^2``, [E, B], of the values [E, B] of the actions in the data."""
    return (q - target).square()


class ConservativeGap(NamedTuple):
    """``gap`` [E, B], and ``calibrated`` (no dimension): the share of policy actions with ``V`` above ``Q``."""

    gap: Tensor
    calibrated: Tensor


def conservative_gap(
    q_data: Tensor,
    q_random: Tensor,
    q_policy: Tensor,
    logp_policy: Tensor,
    *,
    action_size: int,
    mc_returns: Tensor | None,
    temperature: float = 1.0,
    importance_sampling: bool = True,
) -> ConservativeGap:
    """How far the soft maximum of Q over all actions lies above Q of the data's action: the term that is pushed down.

        gap = T log sum_n exp((Q_n - log density_n) / T) - Q(s, a_data)

    over random actions ``q_random`` [E, B, N], whose density is ``0.5^A`` in [-1, 1]^A, and policy actions ``q_policy``
    [E, B, M] with log-densities ``logp_policy`` [B, M] (at least one of ``N`` and ``M`` above 0). The policy's actions
    are those drawn at s, and in Cal-QL as many drawn at s'; all are valued at s. ``q_data`` is [E, B].

    With ``mc_returns`` [B] it is Cal-QL: a policy action counts ``max(Q, V)``, so that it is not pushed below what the
    behaviour got; random actions are *not* bounded. None is CQL.

    Without ``importance_sampling`` the densities are left out and the data's action joins the sum (CQL's older form).

    Gradients flow into all values, and into nothing else: densities are constants. Public code differs in details:
    CORL's "Cal-QL" drops the bound when it goes online (``algorithms/finetune/cal_ql.py`` line 1131), tianshou and DPPO
    bound ``Q - log pi`` instead of Q. See ``align/learners/CALQL.md``.

    Sources: arXiv 2303.05479, equation 5.1; its code, ``JaxCQL/conservative_sac.py`` lines 207-286; CQL, arXiv
    2006.04779, appendix F.
    """
    calibrated = torch.zeros((), dtype=q_data.dtype)
    if mc_returns is not None:
        floor = mc_returns.unsqueeze(-1)
        if q_policy.numel():
            calibrated = (q_policy.detach() < floor).to(q_data.dtype).mean()
        q_policy = torch.maximum(q_policy, floor)
    if importance_sampling:
        values = torch.cat([q_random - action_size * math.log(0.5), q_policy - logp_policy.detach()], dim=-1)
    else:
        values = torch.cat([q_random, q_data.unsqueeze(-1), q_policy], dim=-1)
    return ConservativeGap(temperature * torch.logsumexp(values / temperature, dim=-1) - q_data, calibrated)


def lagrange_multiplier(log_multiplier: Tensor) -> Tensor:
    """``exp`` of the learned logarithm, at most 1e6; no dimension."""
    return log_multiplier.exp().clamp(max=1e6)


def lagrange_loss(log_multiplier: Tensor, gap: Tensor, *, target_gap: float, alpha: float) -> Tensor:
    """What the multiplier minimises, no dimension: ``- multiplier * alpha * (mean gap - target_gap)``.

    It grows while the gap is wider than ``target_gap``, and weakens the conservative term when it is narrower. The
    critics then minimise ``multiplier * alpha * gap``; the constant ``target_gap`` does not change their gradient.

    Source: CQL, arXiv 2006.04779, equation 30; Cal-QL code, ``JaxCQL/conservative_sac.py`` lines 288-298.
    """
    return -lagrange_multiplier(log_multiplier) * alpha * (gap.detach().mean() - target_gap)


def random_subset(ensemble: int, size: int, generator: Generator) -> Tensor:
    """``size`` different indices below ``ensemble``, [size] int64: the critics of one backup (REDQ, RLPD)."""
    return torch.randperm(ensemble, generator=generator)[:size]


def outside(values: Tensor, low: float, high: float) -> Tensor:
    """Share of ``values`` (any shape) outside [low, high], beyond a hundredth of its width; no dimension.

    A Q-value that no sequence of rewards can pay is the first sign of divergence.
    """
    slack = 0.01 * (high - low)
    return (relu(low - values) + relu(values - high) > slack).to(values.dtype).mean()
