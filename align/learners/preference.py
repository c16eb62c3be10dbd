"""The learner of the DPO family: a policy, its frozen reference, and a loss given as an argument."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from align.learners.adapters import AdapterConfig
from align.learners.intruders import IntruderReport, intruder_report
from align.learners.objectives import Objective, PairContext, Terms
from align.learners.optim import MasterAdamW, OptimizerConfig
from align.learners.policy import build_policy
from align.losses.logps import pack_pairs, pair_logps, sequence_logps
from align.types import PackedPairs, PairBatch, PairLogps
from rewards.types import ScoredPair
from rollouts.types import Completion, Origin, WeightUpdate


class Publisher(Protocol):
    """Where weights are put for engines to find (:class:`cluster.weights.WeightStore`)."""

    def publish(self, tensors: Mapping[str, Tensor], version: int) -> str:
        """Stores named tensors under a version and returns their URI."""
        ...

    def close(self) -> None: ...


Explore = Literal["reference", "policy"]


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """``micro_batch_tokens`` bounds the padded tokens of one forward pass; ``attention`` is transformers' name.

    ``adapter`` trains a low-rank update, drawn from ``seed``, in place of all weights. ``explore`` says which
    completion of a pair an exploration bonus is for: the reference policy's sample (Algorithm 1 of XPO), or of two
    samples of the current policy a random one (its on-policy form).
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
    explore: Explore = "reference"
    compare_sampler: bool = True
    """Whether the sampler's log-probabilities are those of the plain policy (temperature 1, no filter)."""


class PreferenceLearner:
    """Trains a causal language model on pairs; implements :class:`align.protocols.Learner`.

    The reference is the model as it was at the start. Its log-probabilities are computed once for each completion
    and kept, since the same pairs come back from the buffer.
    """

    def __init__(self, config: LearnerConfig, objective: Objective, make_publisher: Callable[[Any], Publisher]) -> None:
        self.config = config
        self.objective = objective
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
        chunks = list(self._micro_batches(pairs))
        whole = None if self.objective.separable else self._of_whole_batch(chunks, batch.step)
        for number, chunk in enumerate(chunks):
            logps = self._logps(chunk)
            if whole is None:
                loss, parts = self.objective(logps, self._context(chunk, logps.policy_chosen.device, batch.step))
                objective = loss.sum() / total
            else:
                # The loss of a whole batch, to first order: its gradient is the same, and a chunk has all it needs.
                loss, parts, chosen_slope, rejected_slope = whole[number]
                objective = (chosen_slope * logps.policy_chosen + rejected_slope * logps.policy_rejected).sum()
            objective.backward()  # type: ignore[no-untyped-call]
            self._optim.accumulate()
            self._note(terms, chunk, logps, self.objective.beta_at(batch.step), {"loss/total": loss, **parts})
            seen += zip(chunk, logps.policy_chosen.tolist(), logps.policy_rejected.tolist(), strict=True)
        if (extra := self.policy.extra_loss()) is not None:
            extra.backward()  # type: ignore[no-untyped-call]
            self._optim.accumulate()
            extra = extra.detach()
        computed = time.perf_counter()
        if self._optim.steps == self._published_at:
            gaps += self._sampler_gaps(seen)
        metrics = {name: float(torch.cat(values).mean()) for name, values in terms.items() if values}
        if gaps:
            metrics |= {"mismatch/logp_gap": float(np.mean(gaps)), "mismatch/logp_gap_max": max(gaps)}
        metrics |= {
            "beta": self.objective.beta_at(batch.step),
            "alpha": self.objective.alpha_at(batch.step),
            "buffer/fresh_fraction": batch.fresh / total,
            "buffer/offline_fraction": sum(batch.is_offline) / total,
        }
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

    def _logps(self, pairs: Sequence[ScoredPair]) -> PairLogps:
        chosen, rejected = pair_logps(self._model, self._pack(pairs))
        return PairLogps(chosen, rejected, *self._reference_of(pairs, chosen.device))

    def _context(self, pairs: Sequence[ScoredPair], device: torch.device, step: int) -> PairContext:
        explored = [_explored(pair, self.config.explore) for pair in pairs]
        return PairContext(
            explored=torch.tensor([side is not None for side in explored], device=device),
            explored_is_chosen=torch.tensor([side == "chosen" for side in explored], device=device),
            target=torch.tensor([pair.target for pair in pairs], device=device),
            chosen_length=torch.tensor([len(p.chosen.token_ids) for p in pairs], device=device),
            rejected_length=torch.tensor([len(p.rejected.token_ids) for p in pairs], device=device),
            step=step,
        )

    def _of_whole_batch(
        self, chunks: Sequence[Sequence[ScoredPair]], step: int
    ) -> list[tuple[Tensor, Terms, Tensor, Tensor]]:
        """For losses that compare the pairs of a batch: each chunk's losses, their terms, and two derivatives.

        These are the batch's mean loss by the chosen and by the rejected log-probabilities. One more forward pass buys
        a loss that does not depend on how the batch is cut into chunks.
        """
        with torch.no_grad():
            parts = [self._logps(chunk) for chunk in chunks]
        sizes = [len(chunk) for chunk in chunks]
        logps = PairLogps(
            torch.cat([part.policy_chosen for part in parts]).requires_grad_(),
            torch.cat([part.policy_rejected for part in parts]).requires_grad_(),
            torch.cat([part.ref_chosen for part in parts]),
            torch.cat([part.ref_rejected for part in parts]),
        )
        pairs = [pair for chunk in chunks for pair in chunk]
        loss, terms = self.objective(logps, self._context(pairs, logps.policy_chosen.device, step))
        chosen, rejected = torch.autograd.grad(
            loss.mean(), (logps.policy_chosen, logps.policy_rejected), materialize_grads=True
        )
        parts_of = {name: torch.split(values.detach(), sizes) for name, values in terms.items()}
        return [
            (own, {name: split[number] for name, split in parts_of.items()}, by_chosen, by_rejected)
            for number, (own, by_chosen, by_rejected) in enumerate(
                zip(
                    torch.split(loss.detach(), sizes),
                    torch.split(chosen, sizes),
                    torch.split(rejected, sizes),
                    strict=True,
                )
            )
        ]

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
        beta: float,
        parts: Mapping[str, Tensor],
    ) -> None:
        """Collects the [b] values behind each metric; names are those of TRL."""
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


def _explored(pair: ScoredPair, explore: Explore) -> Literal["chosen", "rejected"] | None:
    """The side that the exploration bonus is for, if any; never decided by which side won."""
    wanted = Origin.REFERENCE if explore == "reference" else Origin.POLICY
    chosen, rejected = pair.chosen.origin is wanted, pair.rejected.origin is wanted
    if explore == "reference" and chosen != rejected:
        return "chosen" if chosen else "rejected"
    if not (chosen and rejected):
        return None
    # Two samples of one policy are exchangeable: a coin that knows their tokens, and not the label, says which of them
    # is meant. The same pair gets the same side in every epoch.
    return "chosen" if _key(pair, pair.chosen) < _key(pair, pair.rejected) else "rejected"
