"""The learner of the DPO family: a policy, its frozen reference, and a loss given as an argument."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from align.learners.adapters import AdapterConfig
from align.learners.intruders import IntruderReport, intruder_report
from align.learners.optim import MasterAdamW, OptimizerConfig
from align.learners.policy import build_policy
from align.losses.logps import pack_pairs, pair_logps, sequence_logps
from align.losses.preference import dpo_loss, xpo_bonus
from align.types import PackedPairs, PairBatch, PairLogps
from rewards.types import ScoredPair
from rollouts.types import Completion, Origin, WeightUpdate


class Publisher(Protocol):
    """Where weights are put for engines to find (:class:`cluster.weights.WeightStore`)."""

    def publish(self, tensors: Mapping[str, Tensor], version: int) -> str:
        """Stores named tensors under a version and returns their URI."""
        ...

    def close(self) -> None: ...


class PairLoss(Protocol):
    """A loss of the family: [B] losses, and the [B] terms they are made of, by metric name."""

    @property
    def beta(self) -> float: ...

    @property
    def alpha(self) -> float: ...

    def __call__(
        self, logps: PairLogps, ref_is_chosen: Tensor, has_ref: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


@dataclass(frozen=True, slots=True)
class DPO:
    """Online, iterative or offline DPO (arXiv 2305.18290), depending only on where the pairs come from."""

    beta: float
    alpha: float = 0.0

    def __call__(self, logps: PairLogps, ref_is_chosen: Tensor, has_ref: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = dpo_loss(
            logps.policy_chosen, logps.policy_rejected, logps.ref_chosen, logps.ref_rejected, beta=self.beta
        )
        return loss, {"loss/preference": loss}


@dataclass(frozen=True, slots=True)
class XPO:
    """DPO plus the exploration bonus of arXiv 2405.21046; pairs without a reference sample carry no bonus."""

    beta: float
    alpha: float
    bonus_clip: float = 500.0

    def __call__(self, logps: PairLogps, ref_is_chosen: Tensor, has_ref: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        sides = (logps.policy_chosen, logps.policy_rejected, logps.ref_chosen, logps.ref_rejected)
        preference = dpo_loss(*sides, beta=self.beta)
        bonus = xpo_bonus(*sides, ref_is_chosen, alpha=self.alpha * has_ref, bonus_clip=self.bonus_clip)
        return preference + bonus, {"loss/preference": preference, "loss/bonus": bonus}


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """``micro_batch_tokens`` bounds the padded tokens of one forward pass; ``attention`` is transformers' name.

    ``adapter`` trains a low-rank update, drawn from ``seed``, in place of all weights.
    """

    model_path: Path
    optimizer: OptimizerConfig
    dtype: str = "bfloat16"
    attention: str = "eager"
    micro_batch_tokens: int = 1024
    gradient_checkpointing: bool = False
    adapter: AdapterConfig | None = None
    seed: int = 0
    probe_ids: tuple[int, ...] = ()
    compare_sampler: bool = True
    """Whether the sampler's log-probabilities are those of the plain policy (temperature 1, no filter)."""


class PreferenceLearner:
    """Trains a causal language model on pairs; implements :class:`align.protocols.Learner`.

    The reference is the model as it was at the start. Its log-probabilities are computed once for each completion
    and kept, since the same pairs come back from the buffer.
    """

    def __init__(self, config: LearnerConfig, loss: PairLoss, make_publisher: Callable[[Any], Publisher]) -> None:
        self.config = config
        self.loss = loss
        self.policy = build_policy(
            config.model_path,
            dtype=getattr(torch, config.dtype),
            attention=config.attention,
            gradient_checkpointing=config.gradient_checkpointing,
            adapter=config.adapter,
            seed=config.seed,
        )
        self._model = self.policy.model
        self._publisher = make_publisher(self._model)
        self._optim = MasterAdamW(self._model, config.optimizer)
        self._version = 0
        self._published_at = 0
        self._reference_logps: dict[str, float] = {}

    def update(self, batch: PairBatch) -> dict[str, float]:
        """One optimiser step on the mean loss of ``batch``."""
        began = time.perf_counter()
        pairs = batch.pairs
        gaps = self._ensure_reference(pairs)
        total = len(pairs)
        referenced = time.perf_counter()
        terms: dict[str, list[Tensor]] = {}
        seen: list[tuple[ScoredPair, float, float]] = []
        for chunk in self._micro_batches(pairs):
            packed = self._pack(chunk)
            chosen, rejected = pair_logps(self._model, packed)
            logps = PairLogps(chosen, rejected, *self._reference_of(chunk, chosen.device))
            ref_is_chosen = torch.tensor([p.chosen.origin is Origin.REFERENCE for p in chunk], device=chosen.device)
            has_ref = ref_is_chosen | torch.tensor(
                [p.rejected.origin is Origin.REFERENCE for p in chunk], device=chosen.device
            )
            loss, parts = self.loss(logps, ref_is_chosen, has_ref)
            (loss.sum() / total).backward()  # type: ignore[no-untyped-call]
            self._optim.accumulate()
            self._note(terms, chunk, logps, {"loss/total": loss, **parts})
            seen += zip(chunk, chosen.tolist(), rejected.tolist(), strict=True)
        if (extra := self.policy.extra_loss()) is not None:
            extra.backward()  # type: ignore[no-untyped-call]
            self._optim.accumulate()
            extra = extra.detach()
        computed = time.perf_counter()
        if self._optim.steps == self._published_at:
            gaps += self._sampler_gaps(seen)
        metrics = {name: float(torch.cat(values).mean()) for name, values in terms.items() if values}
        if gaps:
            metrics |= {"mismatch/logp_gap_mean": float(np.mean(gaps)), "mismatch/logp_gap_max": max(gaps)}
        metrics |= {"beta": self.loss.beta, "alpha": self.loss.alpha, "buffer/fresh_fraction": batch.fresh / total}
        if extra is not None:
            metrics |= {"loss/total": metrics["loss/total"] + float(extra), "loss/orthogonality": float(extra)}
        metrics |= self._optim.step(self.policy.after_step)
        return metrics | {
            "perf/reference_s_total": referenced - began,
            "perf/forward_backward_s_total": computed - referenced,
            "perf/optimizer_s_total": time.perf_counter() - computed,
            "perf/train_gflop_total": self._gflop(pairs),
        }

    def weights(self) -> WeightUpdate:
        """Publishes the weights, with the probe that the engine must reproduce.

        The version counts published changes: weights that did not change keep theirs, so that a resumed run gives its
        engine the very version that it had.
        """
        if self._optim.steps != self._published_at:
            self._version += 1
        uri = self._publisher.publish(self.policy.published(), self._version)
        self._published_at = self._optim.steps
        probe = self.config.probe_ids
        return WeightUpdate(self._version, uri, probe, sequence_logps(self._model, probe) if probe else ())

    def save_model(self, folder: Path) -> None:
        """Writes the policy in the Hugging Face format, an adapter also alone, in peft's, to ``folder/adapter``."""
        self.policy.save(folder)

    def intruders(self, top_k: int = 10, epsilon: float = 0.5) -> IntruderReport:
        """What training made of the model's spectra so far; a decomposition of every updated matrix, so not quick."""
        return intruder_report(self.policy.initial(), self.policy.published(), top_k=top_k, epsilon=epsilon)

    def close(self) -> None:
        """Takes back the published weights."""
        self._publisher.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optim": self._optim.state_dict(),
            "policy": self.policy.state_dict(),
            "version": self._version,
            "published_at": self._published_at,
            "reference_logps": dict(self._reference_logps),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optim.load_state_dict(state["optim"])
        self.policy.load_state_dict(state["policy"])
        self._version = state["version"]
        self._published_at = state["published_at"]
        self._reference_logps = dict(state["reference_logps"])
        torch.set_rng_state(state["rng"])

    def _gflop(self, pairs: Sequence[ScoredPair]) -> float:
        """Billions of multiplications and additions in the matrix products of a forward and backward pass.

        Six for each weight and token, four where the weight is frozen: the decoder's weights on the tokens of a row,
        the head's on completion tokens. Padding and attention scores are left out, so that a rate computed from it is
        of useful work.
        """
        head = self._model.get_output_embeddings().weight
        ends = {id(head), id(self._model.get_input_embeddings().weight)}
        decoder: int = sum(
            (6 if p.requires_grad else 4) * p.numel() for p in self._model.parameters() if id(p) not in ends
        )
        completions = sum(len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs)
        head_cost: int = (6 if head.requires_grad else 4) * head.numel()
        return 1e-9 * (decoder * sum(map(_row_length, pairs)) + head_cost * completions)

    def _pack(self, pairs: Sequence[ScoredPair]) -> PackedPairs:
        triples = [(p.prompt_ids, p.chosen.token_ids, p.rejected.token_ids) for p in pairs]
        packed = pack_pairs(triples, pad_id=0)
        device = next(self._model.parameters()).device
        return PackedPairs(packed.input_ids.to(device), packed.position_ids.to(device), packed.segments.to(device))

    def _micro_batches(self, pairs: Sequence[ScoredPair]) -> Iterator[list[ScoredPair]]:
        """Pairs of similar length together, so that little is padding; ``micro_batch_tokens`` to a chunk."""
        chunk: list[ScoredPair] = []
        for pair in sorted(pairs, key=_row_length):
            if chunk and _row_length(pair) * (len(chunk) + 1) > self.config.micro_batch_tokens:
                yield chunk
                chunk = []
            chunk.append(pair)
        if chunk:
            yield chunk

    def _ensure_reference(self, pairs: Sequence[ScoredPair]) -> list[float]:
        """Computes what the reference policy has not yet been asked; returns its gaps to the sampler, in nats."""
        missing = [p for p in pairs if any(_key(p, c) not in self._reference_logps for c in (p.chosen, p.rejected))]
        gaps: list[float] = []
        for chunk in self._micro_batches(missing):
            with self.policy.reference() as reference, torch.no_grad():
                sides = pair_logps(reference, self._pack(chunk))
            for pair, chosen, rejected in zip(chunk, sides[0].tolist(), sides[1].tolist(), strict=True):
                for completion, logp in ((pair.chosen, chosen), (pair.rejected, rejected)):
                    self._reference_logps.setdefault(_key(pair, completion), logp)
                    if self.config.compare_sampler and completion.origin is Origin.REFERENCE:
                        gaps.append(_gap(completion, logp))
        return gaps

    def _reference_of(self, pairs: Sequence[ScoredPair], device: torch.device) -> tuple[Tensor, Tensor]:
        logps = self._reference_logps
        chosen = torch.tensor([logps[_key(p, p.chosen)] for p in pairs], device=device)
        rejected = torch.tensor([logps[_key(p, p.rejected)] for p in pairs], device=device)
        return chosen, rejected

    def _sampler_gaps(self, seen: Sequence[tuple[ScoredPair, float, float]]) -> list[float]:
        """Gaps to the sampler of the completions drawn with exactly the weights of this update's forward pass."""
        if not self.config.compare_sampler:
            return []
        sides = [(p.chosen, c) for p, c, _ in seen] + [(p.rejected, r) for p, _, r in seen]
        return [
            _gap(completion, logp)
            for completion, logp in sides
            if completion.origin is Origin.POLICY and completion.policy_version == self._version
        ]

    def _note(
        self,
        terms: dict[str, list[Tensor]],
        pairs: Sequence[ScoredPair],
        logps: PairLogps,
        parts: Mapping[str, Tensor],
    ) -> None:
        """Collects the [b] values behind each metric; names are those of TRL."""
        beta = self.loss.beta
        chosen, rejected = logps.policy_chosen - logps.ref_chosen, logps.policy_rejected - logps.ref_rejected
        values = {
            **parts,
            "rewards/chosen": beta * chosen,
            "rewards/rejected": beta * rejected,
            "rewards/margins": beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": logps.policy_chosen,
            "logps/rejected": logps.policy_rejected,
        }
        policy = torch.cat([logps.policy_chosen, logps.policy_rejected]).detach()
        ratio = torch.cat([chosen, rejected]).detach()
        origins = [p.chosen.origin for p in pairs] + [p.rejected.origin for p in pairs]
        ours = torch.tensor([o is Origin.POLICY for o in origins], device=policy.device)
        theirs = torch.tensor([o is Origin.REFERENCE for o in origins], device=policy.device)
        values |= {
            "objective/kl": ratio[ours],
            "objective/entropy": -policy[ours],
            "xpo/ref_sample_logp": policy[theirs],
        }
        for name, value in values.items():
            if value.numel():
                terms.setdefault(name, []).append(value.detach())


def _row_length(pair: ScoredPair) -> int:
    return len(pair.prompt_ids) + len(pair.chosen.token_ids) + len(pair.rejected.token_ids)


def _key(pair: ScoredPair, completion: Completion) -> str:
    """Names a completion of a prompt by its tokens."""
    tokens = np.asarray([*pair.prompt_ids, -1, *completion.token_ids], dtype=np.int64)
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()


def _gap(completion: Completion, logp: float) -> float:
    """Distance between the sampler's and the learner's log-probability, in nats a token."""
    return abs(sum(completion.logprobs) - logp) / len(completion.token_ids)
