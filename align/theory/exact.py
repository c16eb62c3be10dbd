"""A language model so small that all its completions can be listed: exact sampling, exact values.

The model has ``V`` tokens. Token 0 ends a sequence and, as the prompt, begins it. A completion ends with token 0 or
after ``L`` tokens, which makes ``N`` of them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.losses.logps import sequence_logps
from rewards.types import Score
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout, WeightUpdate

Floats = NDArray[np.float64]
Tokens = tuple[int, ...]

END = 0
PROMPT_IDS = (END,)
PROMPT = Prompt("theory", (Message("user", ""),))


def all_completions(vocabulary: int, length: int) -> tuple[Tokens, ...]:
    """Every completion once, shortest first: with or without the end token after the last of ``length`` tokens."""
    words = range(1, vocabulary)
    ended = [(*w, END) for size in range(length) for w in itertools.product(words, repeat=size)]
    return (*ended, *itertools.product(words, repeat=length))


def token_table(model: Any, completions: Sequence[Tokens]) -> Floats:
    """Log-probabilities in nats of every token of every completion, [N, L]; 0 after a completion's end."""
    length = max(map(len, completions))
    ids = torch.tensor([[*c, *[END] * (length - len(c))] for c in completions])
    prompts = torch.tensor(PROMPT_IDS).expand(len(completions), -1)
    with torch.no_grad():
        logits = model(input_ids=torch.cat([prompts, ids[:, :-1]], 1), use_cache=False).logits[:, len(PROMPT_IDS) - 1 :]
    logps: Tensor = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    lengths = torch.tensor([len(c) for c in completions])
    return np.asarray(logps.where(torch.arange(length) < lengths[:, None], 0.0).numpy())


class RegularisedValue:
    """``J_beta(pi) = E_pi[r] - beta KL(pi|pi_ref)`` over the listed completions; rewards and values in one unit."""

    def __init__(self, rewards: Floats, reference_logps: Floats, beta: float) -> None:
        tilted = reference_logps + rewards / beta
        self.optimum = beta * float(np.logaddexp.reduce(tilted))
        self.optimal_logps = tilted - self.optimum / beta
        self._beta = beta

    def suboptimality(self, logps: Floats) -> float:
        """``max J_beta - J_beta(pi)``, computed as ``beta KL(pi|pi*_beta)``, which it equals."""
        return max(0.0, self._beta * float(np.exp(logps) @ (logps - self.optimal_logps)))


class TableScorer:
    """Implements :class:`rewards.types.Scorer` by looking a completion's reward up."""

    def __init__(self, completions: Sequence[Tokens], rewards: Floats) -> None:
        self._rewards = dict(zip(completions, rewards.tolist(), strict=True))

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        return [[self._rewards[c.token_ids] for c in rollout.completions] for rollout in rollouts]


class MemoryWeights:
    """Implements :class:`align.learners.preference.Publisher` within one process."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.uri = ""

    def publish(self, tensors: Mapping[str, Tensor], version: int) -> str:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.uri = f"memory:{version}"
        return self.uri

    def close(self) -> None:
        self.tensors = {}


class ExactCollector:
    """Draws completions from exact probabilities; implements :class:`align.protocols.Collector`.

    Each of ``pairs`` rollouts a step holds one completion of the policy and one of the frozen reference policy, as
    Algorithm 1 of arXiv 2405.21046 samples them. The policy is this collector's own copy of the model, and changes only
    by published weights.
    """

    def __init__(
        self, model: Any, completions: Sequence[Tokens], weights: MemoryWeights, *, pairs: int, seed: int
    ) -> None:
        self._model = model
        self._completions = tuple(completions)
        self._weights = weights
        self._pairs = pairs
        self._seed = seed
        self._version = 0
        self._reference = self._policy = token_table(model, self._completions)

    @property
    def policy_logps(self) -> Floats:
        """Log-probabilities of all completions under the policy that is held now, [N] in nats."""
        return np.asarray(self._policy.sum(1))

    def collect(self, step: int) -> tuple[list[Rollout], dict[str, float]]:
        rng = np.random.default_rng([self._seed, step])
        ours = self._draw(self._policy, Origin.POLICY, self._version, rng)
        theirs = self._draw(self._reference, Origin.REFERENCE, 0, rng)
        rollouts = [Rollout(PROMPT, PROMPT_IDS, sides) for sides in zip(ours, theirs, strict=True)]
        return rollouts, {"rollout/completions": 2.0 * self._pairs}

    def load_weights(self, update: WeightUpdate) -> dict[str, float]:
        if update.uri != self._weights.uri:
            raise ValueError(f"the update points to {update.uri!r}, but {self._weights.uri!r} was published last")
        self._model.load_state_dict(self._weights.tensors, strict=True)
        self._version = update.version
        self._policy = token_table(self._model, self._completions)
        if not update.probe_ids:
            return {}
        ours, theirs = np.array(sequence_logps(self._model, update.probe_ids)), np.array(update.probe_logprobs)
        return {"sync/probe_gap_max": float(np.abs(ours - theirs).max())}

    def state_dict(self) -> dict[str, Any]:
        return {"version": self._version, "model": dict(self._model.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._version = state["version"]
        self._model.load_state_dict(state["model"])
        self._policy = token_table(self._model, self._completions)

    def _draw(self, table: Floats, origin: Origin, version: int, rng: np.random.Generator) -> list[Completion]:
        chances = np.exp(table.sum(1))
        picked = rng.choice(len(self._completions), size=self._pairs, p=chances / chances.sum())
        return [self._completion(self._completions[i], table[i], origin, version) for i in picked]

    def _completion(self, tokens: Tokens, row: Floats, origin: Origin, version: int) -> Completion:
        finish = Finish.STOP if tokens[-1] == END else Finish.LENGTH
        return Completion(
            tokens, tuple(row[: len(tokens)].tolist()), " ".join(map(str, tokens)), finish, origin, version
        )


class ExactEvaluator:
    """Measures the collector's policy without sampling; implements :class:`align.protocols.Evaluator`."""

    def __init__(self, policy_logps: Callable[[], Floats], value: RegularisedValue, good: NDArray[np.bool_]) -> None:
        self._policy_logps = policy_logps
        self._value = value
        self._good = good
        self.suboptimality: list[float] = []
        """One number for each evaluation so far."""
        self.good_probability: list[float] = []

    def evaluate(self, step: int) -> dict[str, float]:
        logps = self._policy_logps()
        self.suboptimality.append(self._value.suboptimality(logps))
        self.good_probability.append(float(np.exp(logps[self._good]).sum()))
        return {
            "theory/suboptimality": self.suboptimality[-1],
            "theory/good_probability": self.good_probability[-1],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"suboptimality": list(self.suboptimality), "good_probability": list(self.good_probability)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.suboptimality = list(state["suboptimality"])
        self.good_probability = list(state["good_probability"])
