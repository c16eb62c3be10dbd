"""A policy discriminator over trajectories: does a candidate look like the work of the reference's policy?

POLAR (arXiv 2507.05197) for robots, an experiment. Two trajectories of the same policy are a positive pair, one of
another policy makes the negative; nobody labels anything. It likes what resembles the reference in style too, so a
policy that outdoes the reference loses by it: a ranker, a filter or a bonus, never the only reward. Simple distances
are printed beside it (:mod:`rewards.success.ranking`) and may well be better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rewards.success.calibration import sigmoid
from rewards.success.errors import SuccessError
from rewards.success.trajectories import Floats, TrajectoryConfig, TrajectoryReader
from rollouts.envs.types import Episode

Policies = Mapping[str, Sequence[Episode]]


@dataclass(frozen=True, slots=True)
class DiscriminatorConfig:
    """A GRU of ``hidden`` units reads both trajectories; ``anchors`` other-policy trajectories of training are kept for
    each task, which a probability is measured against."""

    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    hidden: int = 48
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    anchors: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.hidden, self.steps, self.batch_size, self.anchors) < 1:
            raise ValueError("hidden, steps, batch_size and anchors must be at least 1")


class PairNet(nn.Module):
    """A score [B] of reference and candidate trajectories, each [B, L, D]; only differences of scores mean anything."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def encode(self, trajectories: Tensor) -> Tensor:
        """[B, hidden]: the last state of the GRU."""
        last: Tensor = self.gru(torch.relu(self.inner(trajectories)))[1][0]
        return last

    def compare(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """[B] of encodings [B, hidden]."""
        both = torch.cat((reference, candidate, (reference - candidate).abs(), reference * candidate), dim=1)
        score: Tensor = self.out(both)[:, 0]
        return score

    def forward(self, reference: Tensor, candidate: Tensor) -> Tensor:
        return self.compare(self.encode(reference), self.encode(candidate))


class TrajectoryDiscriminator:
    """Trained on policies' rollouts; with references, a :class:`rewards.success.labeller.TrajectoryJudge`."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        self.config = config or DiscriminatorConfig()
        self.reader = TrajectoryReader(self.config.trajectory)
        self._net: PairNet | None = None
        self._anchors: dict[str, Floats] = {}
        self._references: dict[str, Floats] = {}

    def fit(self, policies: Policies) -> dict[str, float]:
        """Learns from ``policies``, each with its episodes; triples are of one task.

        The loss is Bradley-Terry's, ``-log sigmoid(score(reference, same) - score(reference, other))``, in nats.
        Raises :class:`SuccessError` where no task has a policy with two episodes and another policy beside it.
        """
        episodes = [episode for group in policies.values() for episode in group]
        owner = np.array([place for place, group in enumerate(policies.values()) for _ in group])
        task = np.array([episode.task.name for episode in episodes])
        draw = TripleDraw(owner, task, self.config.seed)
        rows = torch.from_numpy(self.reader.standardise(episodes))
        self._anchors = self._draw_anchors(rows.numpy(), task)
        self._references = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            net = PairNet(rows.shape[-1], self.config.hidden)
        optimiser = torch.optim.AdamW(
            net.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        losses: list[float] = []
        right: list[float] = []
        for _ in range(self.config.steps):
            reference, same, other = (net.encode(rows[part]) for part in draw(self.config.batch_size).T)
            margins = net.compare(reference, same) - net.compare(reference, other)
            loss = -logsigmoid(margins).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            right.append(float((margins > 0).float().mean()))
        self._net = net.eval().requires_grad_(False)
        last = max(1, self.config.steps // 10)
        return {"fit/loss": float(np.mean(losses[-last:])), "fit/pair_accuracy": float(np.mean(right[-last:]))}

    def set_references(self, episodes: Sequence[Episode]) -> None:
        """From now on :meth:`probabilities` compares with these, each with those of its own task: demonstrations."""
        groups: dict[str, list[Episode]] = {}
        for episode in episodes:
            groups.setdefault(episode.task.name, []).append(episode)
        self._references = {name: self.reader.read(group) for name, group in groups.items()}

    @torch.no_grad()
    def scores(self, reference: Floats, candidates: Floats) -> Floats:
        """[N] of ``candidates`` [N, L, D] against one ``reference`` [L, D], both as :attr:`reader` reads them."""
        net = self._fitted()
        encoded = net.encode(torch.from_numpy(candidates))
        one = net.encode(torch.from_numpy(reference[None])).expand(len(encoded), -1)
        made: Floats = net.compare(one, encoded).numpy()
        return made

    def probabilities(self, episodes: Sequence[Episode]) -> NDArray[np.float32]:
        """[N]: how likely each resembles the references of its task more than another policy's trajectory does.

        The Bradley-Terry probability, meaned over references and over the anchors kept in training. Raises
        :class:`SuccessError` for a task without references or anchors.
        """
        made = np.empty(len(episodes), np.float32)
        for place, episode in enumerate(episodes):
            name = episode.task.name
            if name not in self._references or name not in self._anchors:
                raise SuccessError(f"the trajectory discriminator has no references for task '{name}'; fit it on that "
                                   "task too and set its demonstrations as references")  # fmt: skip
            candidate = self.reader.read([episode])
            margins = [
                self.scores(reference, candidate) - self.scores(reference, self._anchors[name])
                for reference in self._references[name]
            ]
            made[place] = sigmoid(np.concatenate(margins).astype(np.float64)).mean()
        return made

    def state_dict(self) -> dict[str, Any]:
        net = None if self._net is None else {k: v.clone() for k, v in self._net.state_dict().items()}
        return {
            "net": net,
            "reader": self.reader.state_dict(),
            "anchors": dict(self._anchors),
            "references": dict(self._references),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reader.load_state_dict(state["reader"])
        self._anchors, self._references = dict(state["anchors"]), dict(state["references"])
        self._net = None
        if state["net"] is not None:
            net = PairNet(state["net"]["inner.weight"].shape[1], self.config.hidden)
            net.load_state_dict(state["net"])
            self._net = net.eval().requires_grad_(False)

    def _fitted(self) -> PairNet:
        if self._net is None:
            raise SuccessError("the trajectory discriminator was not fitted yet; call fit with policies' episodes")
        return self._net

    def _draw_anchors(self, rows: Floats, task: NDArray[np.str_]) -> dict[str, Floats]:
        rng = np.random.default_rng([self.config.seed, 11])
        anchors = {}
        for name in dict.fromkeys(task.tolist()):
            places = np.flatnonzero(task == name)
            anchors[name] = rows[rng.permutation(places)[: self.config.anchors]]
        return anchors


class TripleDraw:
    """Draws triples of episode numbers: a reference, another episode of its policy, and one of another policy.

    ``owner`` [N] numbers the policy of each episode and ``task`` [N] names its task, which all three share. Every
    reference that can have a triple is as likely. Raises :class:`SuccessError` where there is none.
    """

    def __init__(self, owner: NDArray[Any], task: NDArray[Any], seed: int) -> None:
        self._rng = np.random.default_rng([seed, 13])
        self._same: dict[int, NDArray[np.int64]] = {}
        self._other: dict[int, NDArray[np.int64]] = {}
        for place in range(len(owner)):
            alike = (owner == owner[place]) & (task == task[place])
            alike[place] = False
            strange = (owner != owner[place]) & (task == task[place])
            if alike.any() and strange.any():
                self._same[place], self._other[place] = np.flatnonzero(alike), np.flatnonzero(strange)
        if not self._same:
            raise SuccessError("no task has a policy with two episodes and another policy beside it; give rollouts of "
                               "several policies, two or more each")  # fmt: skip
        self._references = np.array(list(self._same))

    def __call__(self, count: int) -> NDArray[np.int64]:
        """[count, 3]."""
        references = self._rng.choice(self._references, count)
        rows = [(r, self._rng.choice(self._same[int(r)]), self._rng.choice(self._other[int(r)])) for r in references]
        return np.array(rows, np.int64)
