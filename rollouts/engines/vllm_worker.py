"""What runs inside a vLLM worker: the shared-memory weight transfer engine, and a fast exact sampler for the CPU.

Only vLLM imports this module, by name, in the process where the model lives.
"""

from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rollouts.engines.sampling import filter_rows, sample_tokens
from rollouts.engines.weight_files import Shapes, check_shapes, expected_shapes, tensors


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """``folder``: the model folder, whose safetensors say which tensors an update must hold."""

    folder: str


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """``path``: a safetensors file with the whole model, under its Hugging Face names."""

    path: str


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Weights from a safetensors file in shared memory, by vLLM's own four-phase protocol.

    vLLM on the CPU packs parameters after loading and empties the originals, so weights may only be replaced through
    its layer-wise reload, which this engine brackets: ``start`` unpacks, ``receive`` loads, ``finish`` packs again.
    """

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    _expected: Shapes | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        self._expected = expected_shapes(Path(init_info.folder))

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        if self._expected is None:
            raise RuntimeError("weight transfer was not initialised: call init_weight_transfer_engine first")
        _load_file(self.model, Path(update_info.path), self._expected)

    def finish_weight_update(self) -> None:
        _finish(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class WorkerExtension:
    """Methods mixed into vLLM's worker, reached through ``LLM.collective_rpc`` by name."""

    model_runner: Any
    vllm_config: Any

    def polestar_load_file(self, path: str, folder: str) -> None:
        """Replace the weights from a file, whichever transfer backend is configured."""
        model = self.model_runner.model
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            _load_file(model, Path(path), expected_shapes(Path(folder)))
            _finish(model, self.vllm_config.model_config)

    def polestar_use_cdf_sampler(self) -> None:
        """Draw one uniform number per request and token instead of one exponential per vocabulary entry."""
        sampler = self.model_runner.sampler.topk_topp_sampler
        if sampler.logprobs_mode != "processed_logprobs":
            raise RuntimeError(f"the CPU sampler reports processed_logprobs, not {sampler.logprobs_mode}")
        sampler.forward = MethodType(_sample, sampler)


def _load_file(model: torch.nn.Module, file: Path, expected: Shapes) -> None:
    check_shapes(file, expected)
    model.load_weights(tensors(file))  # type: ignore[operator]


def _finish(model: torch.nn.Module, model_config: Any) -> None:
    """Packs what was loaded, and the output matrix again.

    Where it is tied to the embedding no tensor of the file is its own, so the layer-wise reload leaves it alone; on the
    CPU its packed copy would keep the old weights for ever.
    """
    finalize_layerwise_reload(model, model_config)  # type: ignore[no-untyped-call]
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
            module.quant_method.process_weights_after_loading(module)


def _sample(
    _sampler: torch.nn.Module,
    logits: torch.Tensor,
    generators: dict[int, torch.Generator],
    k: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contract of ``TopKTopPSampler.forward``: token ids [B] and the log-probabilities they were drawn from."""
    logits = filter_rows(logits, k, p)
    # Seeded rows must not advance the process's own generator.
    unseeded = [row for row in range(logits.shape[0]) if row not in generators]
    uniforms = torch.empty(logits.shape[0], dtype=torch.float64)
    uniforms[unseeded] = torch.rand(len(unseeded), dtype=torch.float64)
    for row, generator in generators.items():
        uniforms[row] = torch.rand((), dtype=torch.float64, generator=generator)
    return sample_tokens(logits, uniforms), logits.log_softmax(dim=-1, dtype=torch.float32)
