"""What an actor and its temperature learn from, as pure functions.

Letters: ``E`` critics, ``B`` states, ``A`` dimensions of an action. Log-densities are natural logarithms.
"""

from typing import Literal

from torch import Tensor

BCScaling = Literal["none", "fixed", "loss_ratio", "value"]


def actor_loss(q: Tensor, logps: Tensor, temperature: float | Tensor, *, reduction: Literal["min", "mean"]) -> Tensor:
    """``temperature * log pi(a|s) - Q(s, a)``, [B], for actions drawn from the actor, from ``q`` [E, B].

    The ensemble speaks with its ``min`` (SAC, CQL and Cal-QL, of two critics) or its ``mean`` (RLPD, of ten).

    Sources: arXiv 1812.05905, equation 7; RLPD, arXiv 2302.02948, algorithm 1.
    """
    value = q.min(dim=0).values if reduction == "min" else q.mean(dim=0)
    return temperature * logps - value


def temperature_loss(log_temperature: Tensor, logps: Tensor, target_entropy: float) -> Tensor:
    """``- log temperature * mean(log pi + target_entropy)``, no dimension.

    The temperature rises while the entropy is below its target. This is the form in the logarithm of the Cal-QL code;
    arXiv 1812.05905, equation 18, and RLPD's code have the temperature itself in its place, whose gradient is the same
    times the temperature, which Adam's scale hides.
    """
    return -log_temperature * (logps.detach().mean() + target_entropy)


def imitation_squared(mode: Tensor, actions: Tensor) -> Tensor:
    """``|mode - a|^2``, [B], of the actor's deterministic actions [B, A]."""
    return (mode - actions).square().sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` [B] where ``mask`` [B] (bool) is true, 0 where it is nowhere; no dimension."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def imitation_weight(
    rl: Tensor, bc: Tensor, q: Tensor, mask: Tensor, *, scaling: BCScaling, weight: float, floor: float
) -> Tensor | float:
    """The factor of the imitation loss in ``mean(rl) + factor * masked_mean(bc, mask)``; a constant to the gradient.

    ``rl`` and ``bc`` are [B], ``q`` [E, B] are the critics' values of the actor's actions.

    ``loss_ratio``: ``weight * mean|rl| / max(masked mean|bc|, floor)``, so that both losses are of the same size
    throughout training, as RoboFuME asks (arXiv 2310.15145, section on policy pre-training; how, it does not say). The
    floor keeps a nearly perfect imitation from growing a boundless weight.
    ``value``: ``weight * mean|q|``, the normalisation of TD3+BC (arXiv 2106.06860, equation 5, where it divides the
    other term): imitation keeps its pull as the scale of values changes, and eases as it gets good.
    ``fixed``: ``weight``. ``none``: 0.
    """
    match scaling:
        case "none":
            return 0.0
        case "fixed":
            return weight
        case "loss_ratio":
            return weight * rl.detach().abs().mean() / masked_mean(bc.detach().abs(), mask).clamp(min=floor)
        case "value":
            return weight * q.detach().abs().mean()
