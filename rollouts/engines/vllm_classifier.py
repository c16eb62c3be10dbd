"""The vLLM classifier: in this process, on the CPU or a GPU, with the raw output of a scalar head."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rollouts.engines.base import EngineError
from rollouts.engines.classifier import Logit
from rollouts.engines.probe import Life, check_sequences, check_tokens, one_line
from rollouts.engines.scalar_head import read_head
from rollouts.engines.sharing import distinct
from rollouts.engines.vllm_process import BLOCK, VLLMProcess, no_compilation, reset_prefix_cache
from rollouts.memory import return_freed_memory

if TYPE_CHECKING:
    from vllm import LLM


class VLLMClassifier:
    """:class:`rollouts.engines.classifier.Classifier` on ``vllm.LLM`` with its pooling runner.

    ``model_path`` is a folder in Hugging Face format with a tokenizer, which vLLM wants although it only sees tokens.
    ``max_context`` in tokens, below the model's own limit. ``kv_cache_gib`` (GiB) holds on the CPU,
    ``gpu_memory_utilization`` (a fraction) on a GPU. ``threads`` are the cores to use, by default all that the process
    may. The head is float32, whatever the ``dtype`` of the backbone. Equal sequences of a call are computed once.

    vLLM gives the sigmoid of a single label unless each request says otherwise; these do.

    With ``prefix_reuse`` sequences of a call that begin alike share whole blocks of 32 tokens. The cache is emptied
    before each call, so that values never depend on what ran before (which tokens share a matrix product shows in the
    last bits). ``keep_prefixes`` keeps it instead: for servers, where candidates of one prompt come in separate calls.

    Several vLLM engines can live in one process, this class and :class:`rollouts.engines.vllm_engine.VLLMEngine`
    mixed; each takes its own memory.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        max_context: int,
        dtype: str = "bfloat16",
        kv_cache_gib: float = 0.5,
        max_num_seqs: int = 256,
        threads: int | None = None,
        prefix_reuse: bool = True,
        keep_prefixes: bool = False,
        enforce_eager: bool = True,
        gpu_memory_utilization: float = 0.5,
        tensor_parallel_size: int = 1,
        seed: int = 0,
    ) -> None:
        if max_context < 1:
            raise ValueError(f"max_context must be at least 1 token, not {max_context}")
        self._folder = Path(model_path)
        self._max_context = max_context
        self._keep_prefixes = keep_prefixes
        self._life = Life()
        arguments: dict[str, Any] = {
            "model": str(self._folder),
            "runner": "pooling",
            "dtype": dtype,
            "max_model_len": max_context,
            "max_num_seqs": max_num_seqs,
            # Long sequences in pieces: the memory of a step does not grow with the context.
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": max(8192, max_num_seqs),
            "enable_prefix_caching": prefix_reuse,
            "block_size": BLOCK,
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": enforce_eager,
            "seed": seed,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "gpu_memory_utilization": gpu_memory_utilization,
            **({} if torch.cuda.is_available() else {"kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}),
        }
        self._process = VLLMProcess(self._folder, arguments, threads or len(os.sched_getaffinity(0)), self._prepare)
        self._start()

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Logit]:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._life.require_alive()
        check_sequences([len(sequence) for sequence in sequences], self._max_context)
        check_tokens(sequences, self._vocabulary)
        if not sequences:
            return []
        if not self._keep_prefixes:
            reset_prefix_cache(self._engine())
        # In lexicographic order: what begins alike follows each other, before the cache makes room for others.
        different = distinct(sequences)
        outputs = self._run([list(tokens) for tokens in different.sequences])
        return_freed_memory()
        values = [_value(output.outputs.data) for output in outputs]
        return different.answers(values, [output.num_cached_tokens or 0 for output in outputs])

    def max_context(self) -> int:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        return self._max_context

    def rebuild(self) -> None:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._start()
        self._life.revive()

    def close(self) -> None:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._process.end()
        self._life.kill("it was closed")

    def _start(self) -> None:
        read_head(self._folder)  # vLLM serves a model without one all the same
        self._process.start()

    def _prepare(self, llm: "LLM") -> None:
        self._vocabulary: int = llm.model_config.get_vocab_size()

    def _engine(self) -> "LLM":
        return self._process.llm

    def _run(self, sequences: Sequence[list[int]]) -> list[Any]:
        from vllm import PoolingParams

        inputs: list[Any] = [{"prompt_token_ids": ids} for ids in sequences]
        try:
            with no_compilation():
                return self._engine().encode(
                    inputs, PoolingParams(use_activation=False), pooling_task="classify", use_tqdm=False
                )
        except BaseException as error:
            # Requests that were under way, also at Ctrl-C, stay in vLLM's scheduler and would answer the next call.
            self._life.kill(f"scoring failed: {one_line(error)}")
            if not isinstance(error, Exception):
                raise
            raise EngineError(f"vLLM failed: {one_line(error)}; the engine must be rebuilt") from error


def _value(data: torch.Tensor) -> float:
    """The one number that vLLM pooled a sequence to."""
    if data.numel() != 1:
        raise EngineError(f"vLLM returned {data.numel()} numbers for a sequence, one was asked for")
    return float(data)
