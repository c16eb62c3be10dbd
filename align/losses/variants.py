"""The preference losses around DPO, as pure functions; import them from :mod:`align.losses.preference`.

Every tensor is [B], every result is one loss for each pair, [B]. Log-probabilities are natural logarithms, summed over
the tokens of a completion with its end-of-sequence token, except where a function says "per token". ``beta`` is per
nat. In the formulas

    c = policy_chosen - ref_chosen,    r = policy_rejected - ref_rejected,    h = c - r,    s = the logistic function.

"As TRL" means the loss type of that name of TRL 1.16's ``DPOTrainer``, whose batch loss is the mean of the result.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ipo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``(h - 1 / (2 beta))^2``; ``beta`` is the paper's tau. The form of the paper, on sums over tokens.

    TRL has only the length-normalised one, :func:`ipo_norm_loss`.

    Source: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv
    2310.12036, equation 17.
    """
    return (_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2


def ipo_norm_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> Tensor:
    """``(c / chosen_length - r / rejected_length - 1 / (2 beta))^2``, as TRL's ``ipo``.

    Lengths are in tokens; without them the log-probabilities must be means per token already. The paper's equation has
    sums; TRL reports that its authors trained with means.

    Source: Azar et al., arXiv 2310.12036, equation 17, divided by lengths.
    """
    _both_or_neither(chosen_length, rejected_length)
    chosen = _per_token(policy_chosen - ref_chosen, chosen_length)
    rejected = _per_token(policy_rejected - ref_rejected, rejected_length)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``max(0, 1 - beta h)``, as TRL; ``beta`` is the paper's gamma.

    Source: Liu et al., "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657, the loss
    "hinge-norm". SLiC-HF (arXiv 2305.10425) has the same hinge without the reference policy.
    """
    return torch.relu(1 - beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected))


def robust_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float | Tensor,
) -> Tensor:
    """``(-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e)``, as TRL.

    ``e = label_smoothing`` in [0, 0.5), a number or [B], is the probability that the label was flipped; over such flips
    the mean is the DPO loss of the true labels. It can be negative, and has no lower bound for a single pair.

    Source: Chowdhury et al., "Provably Robust DPO", arXiv 2403.00409, the rDPO loss.
    """
    _check(label_smoothing, "robust_loss", "in [0, 0.5)", lambda e: (e >= 0) & (e < 0.5))
    x = beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    e = label_smoothing
    return (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)


def cdpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float | Tensor,
) -> Tensor:
    """``-(1 - e) log s(beta h) - e log s(-beta h)``: DPO with soft labels.

    ``e = label_smoothing`` in [0, 1], a number or [B], is the probability that the rejected completion is the better
    one. With the labeller's own probability, ``e = 1 - ScoredPair.probability``, these are soft labels. The minimum is
    at ``s(beta h) = 1 - e``. TRL 1.16 has no such loss: its ``sigmoid`` ignores ``label_smoothing``.

    Source: Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023 (ericmitchell.ai/cdpo.pdf).
    """
    _check(label_smoothing, "cdpo_loss", "in [0, 1]", lambda e: (e >= 0) & (e <= 1))
    x = beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def exo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float | Tensor = 1e-3,
) -> Tensor:
    """``KL((s(beta h), s(-beta h)) || (1 - e, e))``, as TRL's ``exo_pair``: DPO's KL the other way round.

    ``e = label_smoothing`` in (0, 1), a number or [B]; 0 would make the divergence infinite. The default is the
    paper's. ``beta`` is the paper's beta_pi.

    Source: Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856,
    equation 16 with K = 2.
    """
    _check(label_smoothing, "exo_loss", "in (0, 1)", lambda e: (e > 0) & (e < 1))
    x = beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    e = torch.as_tensor(label_smoothing, dtype=x.dtype, device=x.device)
    won, lost = logsigmoid(x), logsigmoid(-x)
    return won.exp() * (won - torch.log1p(-e)) + lost.exp() * (lost - torch.log(e))


def nca_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``-log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2``, as TRL's ``nca_pair``.

    Unlike DPO it looks at each log-ratio by itself, so that the chosen completion's cannot sink unnoticed.

    Source: Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369, the
    NCA loss for preference pairs.
    """
    c, r = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)


def bco_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    delta: float | Tensor = 0.0,
) -> Tensor:
    """``-log s(beta c - delta) - log s(-(beta r - delta))``; with ``delta`` 0, as TRL's ``bco_pair``.

    ``delta`` is the reward shift, in units of reward (``beta`` times nats), without gradient. The paper takes the
    running mean of ``(mean beta c + mean beta r) / 2``; the caller keeps it, since this function has no state. TRL's
    ``bco_pair`` leaves the shift out.

    Source: Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656.
    """
    c, r = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return -logsigmoid(c - delta) - logsigmoid(delta - r)


def sppo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2``, as TRL's ``sppo_hard``; ``beta`` is 1 / eta of the paper.

    The reference is the policy of the round before. The paper's target is ``eta (P - 1/2)`` with P the estimated
    chance to win against that policy; here P is 1 for the chosen and 0 for the rejected completion.

    Source: Wu et al., "Self-Play Preference Optimization for Language Model Alignment", arXiv 2405.00675,
    equation 4.7.
    """
    half = 1 / (2 * beta)
    return (policy_chosen - ref_chosen - half) ** 2 + (policy_rejected - ref_rejected + half) ** 2


def apo_zero_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``1 - s(beta c) + s(beta r)``, as TRL: for chosen completions better than what the policy would say.

    The paper has no 1; like TRL's, this form is positive.

    Source: D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions", arXiv 2408.06266,
    equation 7.
    """
    c, r = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return torch.sigmoid(-c) + torch.sigmoid(r)


def apo_down_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """``s(beta c) + 1 - s(beta h)``, as TRL: for chosen completions worse than what the policy would say.

    The paper has no 1; like TRL's, this form is positive.

    Source: D'Oosterlinck et al., arXiv 2408.06266, equation 8.
    """
    c, r = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return torch.sigmoid(c) + torch.sigmoid(r - c)


def aot_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of ``beta (u - v)``, ``u`` the policy's margin of a pair, ``v`` the reference's at the same rank.

    ``u = policy_chosen - policy_rejected``; the k-th largest is compared with the k-th largest of ``ref_chosen -
    ref_rejected`` of the whole batch, which drives the one distribution above the other. Entry i belongs to pair i; as
    the partner depends on the batch, splitting a batch changes the loss. ``label_smoothing`` in [0, 1] weighs the
    flipped label in. The mean is TRL's ``aot``; the paper has no label smoothing.

    Source: Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv 2406.05882, the
    paired form with the logistic loss.
    """
    _check(label_smoothing, "aot_loss", "in [0, 1]", lambda e: (e >= 0) & (e <= 1))
    policy, reference = policy_chosen - policy_rejected, ref_chosen - ref_rejected
    rank = policy.argsort().argsort()
    x = beta * (policy - reference.sort().values[rank])
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def discopop_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    tau: float = 0.05,
) -> Tensor:
    """``-log s(x) s(-x / tau) + exp(-x) s(x / tau)`` with ``x = beta h``, as TRL; ``tau`` in (0, 1).

    The exponential and its weight are multiplied as logarithms: for margins far below 0 their product goes to 0, where
    the plain form, TRL's, is infinity times 0.

    Source: Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language Models", arXiv
    2406.08414, equation 5.
    """
    x = beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -logsigmoid(x) * torch.sigmoid(-x / tau) + torch.exp(logsigmoid(x / tau) - x)


def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    beta: float,
    gamma: float = 0.5,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> Tensor:
    """``-log s(beta (policy_chosen / chosen_length - policy_rejected / rejected_length) - gamma)``; no reference.

    Lengths are in tokens; without them the log-probabilities must be means per token already. ``gamma`` is the target
    margin in units of reward. ``DPOTrainer`` has no such loss; TRL's ``CPOTrainer`` has this one.

    Source: Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv 2405.14734,
    equation 6.
    """
    _both_or_neither(chosen_length, rejected_length)
    margin = _per_token(policy_chosen, chosen_length) - _per_token(policy_rejected, rejected_length)
    return -logsigmoid(beta * margin - gamma)


def sft_loss(policy_chosen: Tensor, *, chosen_length: Tensor | None = None) -> Tensor:
    """``-policy_chosen / chosen_length``: mean negative log-likelihood per token of the chosen completion, in nats.

    Lengths are in tokens; without them the log-probabilities must be means per token already. Added to a preference
    loss it is the regulariser of arXiv 2404.19733 and 2405.16436. TRL's ``sft`` averages over the tokens
    of the whole batch instead, which is the mean of this one weighted by length; here each pair counts the same, so
    that splitting a batch changes nothing.
    """
    return -_per_token(policy_chosen, chosen_length)


def kto_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    reference_point: float | Tensor = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """``w_d (1 - s(beta (c - z))) + w_u (1 - s(beta (z - r)))``: a pair as one desirable and one undesirable example.

    ``z = reference_point`` in nats, a number or [B], is the estimate of ``KL(policy || reference)``, at least 0 and
    without gradient: the paper and TRL take the batch mean of ``log pi - log pi_ref`` over completions that belong to
    other prompts. With 0 this is :func:`apo_zero_loss`. The weights are the paper's lambda_D and lambda_U.

    Source: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306, the KTO loss
    of section 4. The paper and TRL's ``KTOTrainer`` take the mean over examples; the sum over a pair is twice that.
    """
    c, r = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    desirable = torch.sigmoid(beta * (reference_point - c))
    undesirable = torch.sigmoid(beta * (r - reference_point))
    return desirable_weight * desirable + undesirable_weight * undesirable


def _margin(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


def _per_token(logps: Tensor, length: Tensor | None) -> Tensor:
    """An empty completion has a sum of 0, and a mean of 0."""
    return logps if length is None else logps / length.clamp(min=1)


def _both_or_neither(chosen_length: Tensor | None, rejected_length: Tensor | None) -> None:
    if (chosen_length is None) != (rejected_length is None):
        raise ValueError("give both chosen_length and rejected_length, or neither where the inputs are means per token")


def _check(label_smoothing: float | Tensor, name: str, allowed: str, inside: Callable[[Tensor], Tensor]) -> None:
    if not bool(inside(torch.as_tensor(label_smoothing)).all()):
        raise ValueError(f"{name} needs a label_smoothing {allowed}, not {label_smoothing}")
