"""XPO against online DPO on a tiny language model, by gradient, through the learner and the loop of the real recipes.

The bandit of :mod:`align.theory.bandit` minimises exactly over all policies. Here the policy is a Llama of one layer,
its objective is followed by AdamW, and everything but sampling is what a real run uses: :func:`align.loop.run`,
:class:`align.learners.preference.PreferenceLearner`, :class:`rewards.labeller.PairLabeller`,
:class:`align.buffers.pairs.PairMixer`. Sampling and evaluation are exact, by listing all completions.

What to expect: the gradient finds the unseen completions in most runs, not in all. The exact minimiser of the bonus
goes where the reference policy has least mass; a gradient may settle on a common completion instead.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from align import loop
from align.buffers.pairs import PairMixer
from align.learners.objectives import DPO, XPO, Objective, Schedule
from align.learners.optim import OptimizerConfig
from align.learners.preference import LearnerConfig, PreferenceLearner
from align.protocols import Tracker
from align.theory import exact
from align.tracking.tracker import RunTracker
from rewards.labeller import LabelConfig, PairLabeller
from rollouts.models import load_causal_lm

Floats = NDArray[np.float64]
ARMS = ("online_dpo", "xpo", "wrong_sign")


@dataclass(frozen=True, slots=True)
class SequencesConfig:
    """The task, the optimisation, and the seeds.

    The model knows ``vocabulary`` tokens, 0 being the end, and writes at most ``length`` of them. A completion is good
    when it starts with the last token of the vocabulary; it pays ``reward_good``, all others ``reward_other``. The
    reference policy starts with that token with probability ``rare``, with the others evenly, and goes on evenly. A
    round draws ``pairs`` pairs, and learns from them once and from ``replay_ratio`` times as many old ones,
    ``batch_pairs`` to an optimiser step. A run counts as stuck when every one of its iterates is at least ``gap``
    suboptimal in the regularised objective, of which the reference policy lacks 1.7 with these numbers.

    Why ``alpha`` is just below ``beta^2/2``: at the reference policy, on its own samples, the bonus has the second
    derivative ``-alpha (diag p - p p')`` in the logits and the DPO loss ``beta^2/2 (diag p - p p')``. With more bonus
    the policy runs away along the reference's *common* completions, which a gradient finds before the rare ones; with
    much less it takes too long. The settings were chosen on seeds 0 to 4, which are not among ``seeds``.
    """

    vocabulary: int = 4
    length: int = 3
    rare: float = 1.0e-4
    reward_good: float = 4.0
    reward_other: float = 0.0
    beta: float = 0.25
    alpha: float = 0.03
    lr: float = 4.0e-3
    pairs: int = 32
    batch_pairs: int = 128
    replay_ratio: float = 11.0
    rounds: int = 50
    seeds: tuple[int, ...] = tuple(range(20, 30))
    gap: float = 1.0

    def __post_init__(self) -> None:
        if self.vocabulary < 3 or self.length < 2:
            raise ValueError(f"vocabulary {self.vocabulary} and length {self.length}: give at least 3 and 2")
        if not 0 < self.rare < 1 / self.vocabulary:
            raise ValueError(f"rare is {self.rare}; it must lie between 0 and 1/vocabulary")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds are {self.seeds}; give at least two, an interval needs them")

    @property
    def completions(self) -> tuple[exact.Tokens, ...]:
        return exact.all_completions(self.vocabulary, self.length)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which completions are good, [N]."""
        return np.array([c[0] == self.vocabulary - 1 for c in self.completions])


@dataclass(frozen=True, slots=True)
class SequencesResult:
    """``suboptimality[k, s, t]`` after round t (0: the reference policy) of ``ARMS[k]`` with ``config.seeds[s]``.

    ``good_probability`` has the same shape: the policy's probability of a good completion.
    """

    config: SequencesConfig
    suboptimality: Floats
    good_probability: Floats

    @property
    def stuck(self) -> NDArray[np.bool_]:
        """Which runs have every iterate at least ``gap`` suboptimal, [K, seeds]."""
        best: Floats = self.suboptimality.min(axis=2)
        return best >= self.config.gap


def run_sequences(config: SequencesConfig) -> SequencesResult:
    """Runs every arm with every seed; the arms of one seed share the reference model and the random numbers."""
    curves: list[list[exact.ExactEvaluator]] = [[] for _ in ARMS]
    with _one_thread():
        for seed in config.seeds:
            with tempfile.TemporaryDirectory(prefix="polestar-theory-") as folder:
                path = build_reference(config, Path(folder), seed)
                for arm, row in zip(ARMS, curves, strict=True):
                    row.append(run_once(config, arm, seed, path, RunTracker(())))
    return SequencesResult(
        config,
        np.array([[curve.suboptimality for curve in row] for row in curves]),
        np.array([[curve.good_probability for curve in row] for row in curves]),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products of matrices this small are over before a second thread has woken up; waiting for it costs the most."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_once(config: SequencesConfig, arm: str, seed: int, model: Path, tracker: Tracker) -> exact.ExactEvaluator:
    """One run of one arm from the reference policy in the folder ``model``; returns its evaluator, with the curves."""
    completions, good = config.completions, config.good
    rewards = np.where(good, config.reward_good, config.reward_other)
    weights = exact.MemoryWeights()
    collector = exact.ExactCollector(
        load_causal_lm(model, torch.float32), completions, weights, pairs=config.pairs, seed=seed
    )
    value = exact.RegularisedValue(rewards, collector.policy_logps, config.beta)
    evaluator = exact.ExactEvaluator(lambda: collector.policy_logps, value, good)
    labels = LabelConfig(label="bradley_terry", pairing="reference", ties="random", seed=seed)
    learner_config = LearnerConfig(
        model_path=model,
        optimizer=OptimizerConfig(lr=config.lr),
        dtype="float32",
        probe_ids=(*exact.PROMPT_IDS, *range(1, config.vocabulary)),
    )
    learner = PreferenceLearner(learner_config, _loss(config, arm), lambda policy: weights)
    parts = loop.Parts(
        collector=collector,
        labeller=PairLabeller(exact.TableScorer(completions, rewards), labels),
        mixer=PairMixer(batch_pairs=config.batch_pairs, replay_ratio=config.replay_ratio, seed=seed),
        learner=learner,
        evaluator=evaluator,
        tracker=tracker,
    )
    loop.run(parts, loop.Schedule(total_steps=config.rounds, evaluate_every=1), save=lambda step: None)
    learner.close()
    return evaluator


def _loss(config: SequencesConfig, arm: str) -> Objective:
    match arm:
        case "online_dpo":
            return DPO(Schedule(config.beta))
        case "xpo":
            return XPO(Schedule(config.beta), Schedule(config.alpha))
        case "wrong_sign":
            return XPO(Schedule(config.beta), Schedule(-config.alpha))
    raise ValueError(f"no arm is called {arm!r}; there are {', '.join(ARMS)}")


def build_reference(config: SequencesConfig, folder: Path, seed: int, steps: int = 200) -> Path:
    """Writes a Llama that was fitted, by gradient, to the task's reference policy; returns ``folder``.

    The fit is to the logarithms of the next-token probabilities themselves, over every beginning of a completion, so
    that the rare token comes out as rare as it should be and not as a sample of it happened to be.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    architecture = LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=exact.END,
        eos_token_id=exact.END,
        # Not the end token: transformers keeps the embedding of a padding token at zero and never trains it.
        pad_token_id=None,
    )
    target = torch.full((config.length, config.vocabulary), 1 / config.vocabulary)
    target[0] = (1 - config.rare) / (config.vocabulary - 1)
    target[0, -1] = config.rare
    beginnings = sorted({c[:-1] for c in config.completions if len(c) == config.length})
    inputs = torch.tensor([[*exact.PROMPT_IDS, *beginning] for beginning in beginnings])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(architecture)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        logps = model(input_ids=inputs, use_cache=False).logits.log_softmax(-1)
        loss = (logps - target.log()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    return folder
