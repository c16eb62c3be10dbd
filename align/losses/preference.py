"""Preference losses as pure functions: tensors of shape [B] in, one loss for each pair [B] out.

Every log-probability is summed over the tokens of a completion, the end-of-sequence token included, in nats. Write

    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)

for the difference of the two log-ratios; ``beta * h`` is the implicit reward margin. DPO and XPO are written here, the
losses around them in :mod:`align.losses.variants`; all are imported from here.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.losses.variants import (
    aot_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    cdpo_loss,
    discopop_loss,
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

__all__ = [
    "aot_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "cdpo_loss",
    "discopop_loss",
    "dpo_loss",
    "exo_loss",
    "hinge_loss",
    "ipo_loss",
    "ipo_norm_loss",
    "kto_loss",
    "nca_loss",
    "robust_loss",
    "sft_loss",
    "simpo_loss",
    "sppo_loss",
    "xpo_bonus",
    "xpo_loss",
]


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``-log sigmoid(beta * h)`` for each pair, [B] in nats.

    Source: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 7.
    """
    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return -logsigmoid(beta * h)


def xpo_bonus(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    ref_is_chosen: Tensor,
    *,
    alpha: float | Tensor,
    bonus_clip: float = 500.0,
) -> Tensor:
    """The exploration term of XPO for each pair, [B]: ``alpha * clip(log pi(y) - log pi_ref(y), +-bonus_clip)``.

    ``y`` is the side that was sampled from the reference policy: ``chosen`` where ``ref_is_chosen`` (bool, [B]), else
    ``rejected``. The sign is plus in a minimised loss: the term pushes the likelihood of reference samples *down*,
    which raises the value that the policy implies for everything else (optimism). It is neither an entropy bonus nor
    a KL penalty.

    The value logged for it is this log-ratio form. It differs from the paper's ``alpha * log pi(y)`` by
    ``alpha * log pi_ref(y)``, a constant in the parameters, so the gradients are the same inside the clip.
    ``alpha`` may be a tensor [B]; zero switches the term off for pairs that hold no reference sample.

    Source: Xie et al., "Exploratory Preference Optimization", arXiv 2405.21046, Algorithm 1, line 6; the clip at 500
    is that of the paper's experiments (Appendix E).
    """
    ratio = torch.where(ref_is_chosen, policy_chosen - ref_chosen, policy_rejected - ref_rejected)
    return alpha * ratio.clamp(-bonus_clip, bonus_clip)


def xpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    ref_is_chosen: Tensor,
    *,
    beta: float,
    alpha: float | Tensor,
    bonus_clip: float = 500.0,
) -> Tensor:
    """DPO plus XPO's exploration term, for each pair, [B]: :func:`dpo_loss` + :func:`xpo_bonus`.

    With ``alpha`` 0 it is bit for bit the DPO loss. Both sums of Algorithm 1 run over the same pairs, so taking the
    mean of the result over any batch keeps the paper's ``alpha``.

    Source: Xie et al., "Exploratory Preference Optimization", arXiv 2405.21046, Algorithm 1, line 6.
    """
    logps = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return dpo_loss(*logps, beta=beta) + xpo_bonus(*logps, ref_is_chosen, alpha=alpha, bonus_clip=bonus_clip)
