"""The transformers engine: slower than vLLM, and runs wherever PyTorch does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from rollouts.engines.base import EngineError, Request, Sample, SamplingParams
from rollouts.engines.probe import SyncGuard, check_requests, check_sequences
from rollouts.engines.sampling import filter_logits, sample_tokens
from rollouts.engines.weight_files import check_shapes, expected_shapes, tensors
from rollouts.models import load_causal_lm
from rollouts.types import Finish, WeightUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS_ELEMENTS: Final = 2**26  # of one scoring batch: 256 MiB in float32


class HFEngine:
    """:class:`rollouts.engines.base.Engine` on a transformers causal language model.

    ``model_path`` is a folder in Hugging Face format. ``batch_size`` samples are drawn at a time. ``max_context`` in
    tokens; ``probe_tolerance`` as in :class:`rollouts.engines.vllm_engine.VLLMEngine`. Log-probabilities are those of
    the distribution that was sampled; for greedy decoding, at temperature 1. From the same seeds this engine and the
    vLLM engine draw the same tokens, up to the rounding of their logits.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        max_context: int,
        dtype: str = "float32",
        batch_size: int = 64,
        device: str = "cpu",
        probe_tolerance: float = 0.05,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self._folder = Path(model_path)
        self._dtype = getattr(torch, dtype)
        self._max_context = max_context
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._guard = SyncGuard(probe_tolerance)
        self._expected = expected_shapes(self._folder)
        self._model: PreTrainedModel | None = None
        self._build()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        """See :class:`rollouts.engines.base.Engine`."""
        self._guard.require_alive()
        check_requests([len(request.prompt_ids) for request in requests], params.max_new_tokens, self._max_context)
        jobs = [(request.prompt_ids, seed) for request in requests for seed in request.seeds]
        samples: list[Sample] = []
        for start in range(0, len(jobs), self._batch_size):
            samples += self._generate_batch(jobs[start : start + self._batch_size], params)
        drawn = iter(samples)
        return [[next(drawn) for _ in request.seeds] for request in requests]

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """See :class:`rollouts.engines.base.Engine`."""
        self._guard.require_alive()
        return self._logprobs(sequences)

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        """See :class:`rollouts.engines.base.Engine`; adds the measurements of :meth:`SyncGuard.sync`."""
        return self._guard.sync(
            update,
            load=lambda: self._load(update),
            logprobs=lambda ids: self._logprobs([ids])[0],
            verify=lambda: None,
        )

    def version(self) -> int:
        """See :class:`rollouts.engines.base.Engine`."""
        return self._guard.version

    def max_context(self) -> int:
        """See :class:`rollouts.engines.base.Engine`."""
        return self._max_context

    def rebuild(self) -> None:
        """See :class:`rollouts.engines.base.Engine`."""
        self._model = None
        self._build()
        self._guard.revive()

    def close(self) -> None:
        """See :class:`rollouts.engines.base.Engine`."""
        self._model = None
        self._guard.kill("it was closed")

    def _build(self) -> None:
        model = load_causal_lm(self._folder, self._dtype, attn_implementation="sdpa")
        limit = getattr(model.config, "max_position_embeddings", self._max_context)
        if self._max_context > limit:
            raise EngineError(f"max_context {self._max_context} exceeds the {limit} positions of '{self._folder}'")
        model.requires_grad_(False)
        self._model = model.to(self._device)  # type: ignore[arg-type]

    def _net(self) -> Any:
        if self._model is None:
            raise EngineError("the engine was closed; build a new one")
        return self._model

    @torch.no_grad()
    def _load(self, update: WeightUpdate) -> None:
        scheme, _, path = update.uri.partition(":")
        if scheme != "file":
            raise ValueError(f"the transformers engine takes 'file:' updates only, not '{scheme}:'")
        file = Path(path)
        check_shapes(file, self._expected)
        parameters = self._net().state_dict()
        for name, tensor in tensors(file):
            if name not in parameters:
                raise ValueError(f"'{file}': the model has no parameter '{name}'")
            parameters[name].copy_(tensor)

    @torch.no_grad()
    def _generate_batch(self, jobs: Sequence[tuple[tuple[int, ...], int]], params: SamplingParams) -> list[Sample]:
        """Left-padded prompts through the key-value cache, a token at a time, until every row has stopped."""
        ids, mask = self._pad([prompt for prompt, _ in jobs], left=True)
        generators = [torch.Generator().manual_seed(seed) for _, seed in jobs]
        stops = torch.tensor(params.stop_token_ids, dtype=torch.long, device=self._device)
        tokens: list[list[int]] = [[] for _ in jobs]
        logprobs: list[list[float]] = [[] for _ in jobs]
        stopped = [False] * len(jobs)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache: Any = None
        for step in range(params.max_new_tokens):
            out = self._net()(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache, logits = out.past_key_values, out.logits[:, -1].float()
            if step < params.min_new_tokens:
                logits[:, stops] = float("-inf")
            drawn, scores = self._draw(logits, params, generators)
            for row, (token, score) in enumerate(zip(drawn.tolist(), scores.tolist(), strict=True)):
                if not stopped[row]:
                    tokens[row].append(token)
                    logprobs[row].append(score)
                    stopped[row] = token in params.stop_token_ids
            if all(stopped):
                break
            ids = drawn.unsqueeze(-1)
            mask = torch.cat((mask, torch.ones_like(ids)), dim=-1)
            positions = positions[:, -1:] + 1
        return [
            Sample(tuple(t), tuple(p), Finish.STOP if end else Finish.LENGTH)
            for t, p, end in zip(tokens, logprobs, stopped, strict=True)
        ]

    def _draw(
        self, logits: torch.Tensor, params: SamplingParams, generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [B] from ``logits`` [B, V], and their log-probabilities [B]."""
        if params.temperature == 0:
            drawn = logits.argmax(dim=-1)
        else:
            logits = filter_logits(logits / params.temperature, params.top_k, params.top_p)
            uniforms = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators])
            drawn = sample_tokens(logits, uniforms.to(logits.device))
        scores = logits.log_softmax(dim=-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        return drawn, scores

    @torch.no_grad()
    def _logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        check_sequences([len(sequence) for sequence in sequences], self._max_context)
        vocabulary = self._net().config.get_text_config().vocab_size
        longest = max((len(sequence) for sequence in sequences), default=1)
        rows = max(1, min(self._batch_size, _LOGITS_ELEMENTS // (longest * vocabulary)))
        scored: list[tuple[float, ...]] = []
        for start in range(0, len(sequences), rows):
            batch = sequences[start : start + rows]
            ids, mask = self._pad(batch, left=False)
            logits = self._net()(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            scores = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1).tolist()
            scored += [tuple(row[: len(sequence) - 1]) for row, sequence in zip(scores, batch, strict=True)]
        return scored

    def _pad(self, sequences: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask [B, L], padded with token 0 on the left or the right."""
        width = max(len(sequence) for sequence in sequences)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, where] = torch.tensor(tuple(sequence))
            mask[row, where] = 1
        return ids.to(self._device), mask.to(self._device)
