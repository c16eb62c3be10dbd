"""vLLM inside this process: how an engine is built and ended without leaving traces, shared by our vLLM engines."""

import gc
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rollouts.engines.base import EngineError

if TYPE_CHECKING:
    from vllm import LLM

BLOCK: Final = 32  # tokens in a block of the prefix cache; the smallest that vLLM's CPU attention takes

_living = 0  # engines of this process; they share vLLM's process group


@contextmanager
def building(threads: int, on_gpu: bool) -> Iterator[None]:
    """Where an engine is built: it computes with ``threads``, and the process is otherwise left as it was."""
    with _untouched_process(), no_compilation():
        os.environ.update(_environment(on_gpu))
        torch.set_num_threads(threads)
        yield
    torch.set_num_threads(threads)


def start(arguments: Mapping[str, Any]) -> "LLM":
    """A running ``vllm.LLM``; inside :func:`building` only. End it with :func:`shut_down` and :func:`clean_up`."""
    global _living
    from vllm import LLM

    llm = LLM(**arguments)
    _living += 1
    return llm


def shut_down(llm: "LLM") -> None:
    """Ends the engine; then drop every reference to ``llm`` and call :func:`clean_up`."""
    global _living
    _living -= 1
    with _kept_process_group():
        llm.llm_engine.engine_core.shutdown()


def clean_up() -> None:
    """Frees what ended engines held; with the last of them also vLLM's process group, which the living still use."""
    gc.collect()
    if _living == 0:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@contextmanager
def _kept_process_group() -> Iterator[None]:
    """Keeps an engine that ends from ending the process group of all: vLLM thinks itself alone in its process."""
    from vllm.v1.engine import core as module

    core: Any = module
    clean = core.cleanup_dist_env_and_memory
    core.cleanup_dist_env_and_memory = lambda *_, **__: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = clean


def reset_prefix_cache(llm: "LLM") -> None:
    """Empties the prefix cache; :class:`EngineError` when a request still runs."""
    if not llm.reset_prefix_cache():
        raise EngineError("vLLM's prefix cache cannot be emptied: some request still runs")


@contextmanager
def no_compilation() -> Iterator[None]:
    """Runs vLLM's few torch.compile helpers as they are: on a CPU each costs a C++ compiler and ten seconds."""
    with torch.compiler.set_stance("force_eager" if not torch.cuda.is_available() else "default"):
        yield


def _environment(on_gpu: bool) -> dict[str, str]:
    chosen = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: nothing but our calls decides what is batched
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if not on_gpu:
        chosen["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the runner whose sampler polestar_use_cdf_sampler replaces
    # vLLM's loggers pass to whatever handlers the program has; set it to 1 to see them on the console.
    defaults = {"VLLM_CONFIGURE_LOGGING": "0"}
    return {**chosen, **{name: value for name, value in defaults.items() if name not in os.environ}}


@contextmanager
def _untouched_process() -> Iterator[None]:
    """Gives back the random states, ``torch.set_num_threads`` and LD_PRELOAD, all of which vLLM sets for itself."""
    import logging

    logging.getLogger("vllm").addHandler(logging.NullHandler())
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
        torch.set_num_threads = set_num_threads
        os.environ.pop("LD_PRELOAD", None)
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
