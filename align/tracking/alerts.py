"""Signs of trouble in a step's numbers, the same for the console and for W&B."""

import math
from dataclasses import dataclass

from align.protocols import Metrics


@dataclass(frozen=True, slots=True)
class Alert:
    """``kind`` is stable (an alert of a kind is raised once a run); ``text`` says what happened and what to do."""

    kind: str
    title: str
    text: str


def alerts(step: int, metrics: Metrics, kl_limit: float) -> list[Alert]:
    """The alerts that ``metrics`` give reason for. ``kl_limit`` is in nats per completion; infinity switches it off."""
    found = []
    odd = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        found.append(
            Alert(
                "nonfinite",
                "A metric is not finite",
                f"step {step}: {', '.join(odd[:3])}{more} is NaN or infinite; continue from the last checkpoint with a "
                "smaller learner.optimizer.lr",
            )
        )
    kl = metrics.get("objective/kl", 0.0)
    if math.isfinite(kl) and kl > kl_limit:
        found.append(
            Alert(
                "kl",
                "KL is high",
                f"step {step}: objective/kl is {kl:.3g} nats, above {kl_limit:g}; far from the reference: "
                "raise learner.loss.beta or lower learner.optimizer.lr, and read the samples",
            )
        )
    if metrics.get("label/ties", 0.0) > 0 and metrics.get("label/pairs", 1.0) == 0:
        found.append(
            Alert(
                "ties",
                "All pairs are tied",
                f"step {step}: no pair has a preferred side, nothing was learnt; raise rollout.samples_per_prompt or "
                "choose prompts that are sometimes answered right",
            )
        )
    return found


class AlertOnce:
    """Lets every kind of alert through once."""

    def __init__(self, kl_limit: float) -> None:
        self._kl_limit = kl_limit
        self._seen: set[str] = set()

    def new(self, step: int, metrics: Metrics) -> list[Alert]:
        fresh = [alert for alert in alerts(step, metrics, self._kl_limit) if alert.kind not in self._seen]
        self._seen |= {alert.kind for alert in fresh}
        return fresh

    def state_dict(self) -> list[str]:
        return sorted(self._seen)

    def load_state_dict(self, state: list[str]) -> None:
        self._seen = set(state)
