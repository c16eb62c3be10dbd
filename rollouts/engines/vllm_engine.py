"""The vLLM engine: in this process, on the CPU or a GPU, with weights that can be replaced and are proven to be.

Two properties that vLLM does not give by itself:

- ``generate`` depends on weights, requests and parameters alone, never on what ran before: the prefix cache is emptied
  first (it changes which tokens share a matrix product, and so the last bits). Within a call prompts still share it.
- Building an engine leaves the process as it was: random states, thread settings and environment.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from rollouts.engines.base import EngineError, Request, Sample, SamplingParams
from rollouts.engines.probe import SyncGuard, check_requests, check_sequences, one_line
from rollouts.engines.vllm_process import BLOCK, VLLMProcess, no_compilation, reset_prefix_cache
from rollouts.engines.vllm_weights import receive_live, require_backend
from rollouts.memory import return_freed_memory
from rollouts.types import Finish, WeightUpdate

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

_MAX_SEED: Final = 2**63


class VLLMEngine:
    """:class:`rollouts.engines.base.Engine` on ``vllm.LLM``.

    ``model_path`` is a folder in Hugging Face format (:func:`rollouts.models.resolve`). ``max_context`` in tokens,
    below the model's own limit. ``kv_cache_gib`` (GiB) holds on the CPU, ``gpu_memory_utilization`` (a fraction) on a
    GPU. ``threads`` are the cores to use, by default all that the process may. ``probe_tolerance`` bounds the
    mean difference between engine and learner on the probe, in nats a token, as a share of 1 + the mean size of the
    log-probabilities; bfloat16 alone makes about 0.015.

    The log-probabilities of samples are those of the distribution that was sampled: after temperature, filters and the
    ban on stop tokens below ``min_new_tokens``; for greedy decoding, at temperature 1.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        max_context: int,
        dtype: str = "bfloat16",
        kv_cache_gib: float = 0.5,
        max_num_seqs: int = 256,
        weight_transfer: str = "shm",
        threads: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.5,
        enforce_eager: bool = True,
        probe_tolerance: float = 0.05,
        seed: int = 0,
    ) -> None:
        if max_context < BLOCK + 2:
            raise ValueError(f"max_context must be at least {BLOCK + 2} tokens, not {max_context}")
        require_backend(weight_transfer)
        self._folder = Path(model_path)
        self._max_context = max_context
        self._weight_transfer = weight_transfer
        self._on_gpu = torch.cuda.is_available()
        self._guard = SyncGuard(probe_tolerance)
        # Two blocks and one token: a cache that outlived its weights shows as tokens that need not be computed.
        self._canary = tuple(1 + i % 7 for i in range(min(2, (max_context - 2) // BLOCK) * BLOCK + 1))
        arguments: dict[str, Any] = {
            "model": str(self._folder),
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "max_model_len": max_context + 1,  # logprobs() of a full context asks vLLM for one token more
            "max_num_seqs": max_num_seqs,
            # A seeded request whose prefill is cut in two crashes vLLM on the CPU: never cut one.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_context + 1, 8192),
            "enable_prefix_caching": True,
            "block_size": BLOCK,
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": enforce_eager,
            "seed": seed,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "weight_transfer_config": {"backend": weight_transfer},
            "worker_extension_cls": "rollouts.engines.vllm_worker.WorkerExtension",
            "gpu_memory_utilization": gpu_memory_utilization,
            **({} if self._on_gpu else {"kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}),
        }
        self._process = VLLMProcess(self._folder, arguments, threads or len(os.sched_getaffinity(0)), self._prepare)
        self._process.start()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        """See :class:`rollouts.engines.base.Engine`. Seeds lie in [0, 2**63)."""
        self._guard.require_alive()
        check_requests([len(request.prompt_ids) for request in requests], params.max_new_tokens, self._max_context)
        for index, request in enumerate(requests):
            if not all(0 <= seed < _MAX_SEED for seed in request.seeds):
                raise ValueError(f"request {index}: seeds must lie in [0, 2**63)")
        jobs = [(request.prompt_ids, seed) for request in requests for seed in request.seeds]
        if not jobs:
            return [[] for _ in requests]
        reset_prefix_cache(self._engine())
        outputs = iter(self._run([ids for ids, _ in jobs], [_sampling(params, seed) for _, seed in jobs]))
        samples = [[_sample(next(outputs)) for _ in request.seeds] for request in requests]
        return_freed_memory()
        return samples

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """See :class:`rollouts.engines.base.Engine`."""
        self._guard.require_alive()
        return self._logprobs(sequences)

    def load_weights(self, update: WeightUpdate) -> Mapping[str, float]:
        """See :class:`rollouts.engines.base.Engine`; adds the measurements of :meth:`SyncGuard.sync`."""
        return self._guard.sync(
            update,
            load=lambda: self._transfer(update),
            logprobs=lambda ids: self._logprobs([ids])[0],
            verify=lambda: self._verify(update),
        )

    def version(self) -> int:
        """See :class:`rollouts.engines.base.Engine`."""
        return self._guard.version

    def max_context(self) -> int:
        """See :class:`rollouts.engines.base.Engine`."""
        return self._max_context

    def rebuild(self) -> None:
        """See :class:`rollouts.engines.base.Engine`."""
        self._process.start()
        self._guard.revive()

    def close(self) -> None:
        """See :class:`rollouts.engines.base.Engine`."""
        self._process.end()
        self._guard.kill("it was closed")

    def _prepare(self, llm: "LLM") -> None:
        if not self._on_gpu:
            llm.collective_rpc("polestar_use_cdf_sampler")
        if self._weight_transfer == "shm":
            llm.init_weight_transfer_engine({"init_info": {"folder": str(self._folder)}})

    def _engine(self) -> "LLM":
        return self._process.llm

    def _transfer(self, update: WeightUpdate) -> None:
        llm = self._engine()
        self._cached_canary_tokens()  # so that the canary is in the cache, whatever was evicted since
        scheme, _, rest = update.uri.partition(":")
        version = str(update.version)
        if scheme == "file" and self._weight_transfer == "shm":
            llm.start_weight_update()
            llm.update_weights({"update_info": {"path": rest}})
            llm.finish_weight_update(weight_version=version)
        elif scheme == "file":
            llm.collective_rpc("polestar_load_file", kwargs={"path": rest, "folder": str(self._folder)})
            llm.update_weight_version(version)
        elif scheme == self._weight_transfer:
            receive_live(llm, update.uri)
            llm.finish_weight_update(weight_version=version)
        else:
            raise ValueError(f"this engine takes 'file:' and '{self._weight_transfer}:' updates; set weight_transfer")
        reset_prefix_cache(self._engine())

    def _verify(self, update: WeightUpdate) -> None:
        stamp = self._engine().get_weight_version()
        if stamp != str(update.version):
            raise ValueError(f"vLLM reports weight version '{stamp}'")
        if stale := self._cached_canary_tokens():
            raise ValueError(f"the prefix cache outlived its weights: {stale} tokens were not computed anew")

    def _cached_canary_tokens(self) -> int:
        [output] = self._run([self._canary], [_sampling(SamplingParams(1, (), temperature=0.0), 0)])
        return output.num_cached_tokens or 0

    def _logprobs(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        check_sequences([len(sequence) for sequence in sequences], self._max_context)
        from vllm import SamplingParams as VLLMSamplingParams

        if not sequences:
            return []
        score = VLLMSamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run([tuple(sequence) for sequence in sequences], [score] * len(sequences))
        return [_prompt_logprobs(output) for output in outputs]

    def _run(self, prompts: Sequence[tuple[int, ...]], params: Sequence[Any]) -> "list[RequestOutput]":
        llm = self._engine()
        inputs: list[Any] = [{"prompt_token_ids": list(ids)} for ids in prompts]
        try:
            with no_compilation():
                return llm.generate(inputs, list(params), use_tqdm=False)
        except BaseException as error:
            # Requests that were under way, also at Ctrl-C, stay in vLLM's scheduler and would answer the next call.
            self._guard.kill(f"generation failed: {one_line(error)}")
            if not isinstance(error, Exception):
                raise
            raise EngineError(f"vLLM failed: {one_line(error)}; the engine must be rebuilt") from error


def _sampling(params: SamplingParams, seed: int) -> Any:
    from vllm import SamplingParams as VLLMSamplingParams

    greedy = params.temperature == 0
    return VLLMSamplingParams(
        temperature=params.temperature,
        top_p=1.0 if greedy else params.top_p,
        top_k=0 if greedy else params.top_k,
        seed=None if greedy else seed,
        max_tokens=params.max_new_tokens,
        min_tokens=params.min_new_tokens,
        stop_token_ids=list(params.stop_token_ids),
        logprobs=0,
        detokenize=False,
    )


def _sample(output: "RequestOutput") -> Sample:
    [completion] = output.outputs
    tokens = tuple(completion.token_ids)
    finish = Finish.STOP if completion.finish_reason == "stop" else Finish.LENGTH
    return Sample(tokens, _scores(tokens, completion.logprobs), finish)


def _prompt_logprobs(output: "RequestOutput") -> tuple[float, ...]:
    ids = tuple(output.prompt_token_ids or ())
    return _scores(ids[1:], list(output.prompt_logprobs or ())[1:])


def _scores(tokens: Sequence[int], positions: Any) -> tuple[float, ...]:
    """The log-probability of each token in vLLM's table of each position."""
    if positions is None or len(positions) != len(tokens):
        raise EngineError(f"vLLM returned {len(positions or ())} log-probabilities for {len(tokens)} tokens")
    return tuple(table[token].logprob for token, table in zip(tokens, positions, strict=True))
