"""vLLM inside this process: how an engine is built and ended without leaving traces, shared by our vLLM engines."""

import gc
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rollouts.engines.base import EngineError
from rollouts.engines.probe import one_line
from rollouts.engines.vllm_weights import register

if TYPE_CHECKING:
    from vllm import LLM

BLOCK: Final = 32  # tokens in a block of the prefix cache; the smallest that vLLM's CPU attention takes

_living = 0  # engines of this process; they share vLLM's process group


class VLLMProcess:
    """One ``vllm.LLM``, which can be ended and started again from the same ``arguments``.

    It computes with ``threads``, and starting it leaves the process otherwise as it was. ``prepare`` is called with
    every engine that starts. Everything that vLLM raises at that becomes :class:`EngineError`.
    """

    def __init__(
        self, folder: Path, arguments: Mapping[str, Any], threads: int, prepare: Callable[["LLM"], None]
    ) -> None:
        self.arguments = dict(arguments)
        self._folder, self._threads, self._prepare = folder, threads, prepare
        self._llm: LLM | None = None

    @property
    def llm(self) -> "LLM":
        """The engine that runs; :class:`EngineError` when it was ended."""
        if self._llm is None:
            raise EngineError("the engine was closed; build a new one")
        return self._llm

    def start(self) -> None:
        """Starts the engine; one that runs is ended first."""
        self.end()
        with self._building():
            try:
                self._llm = _start(self.arguments)
                self._prepare(self._llm)
            except Exception as error:
                self.end()
                raise EngineError(f"vLLM cannot serve '{self._folder}': {one_line(error)}") from error

    def end(self) -> None:
        """Ends the engine, if there is one, and frees what it held."""
        if self._llm is None:
            return
        _shut_down(self._llm)
        self._llm = None
        _clean_up()

    @contextmanager
    def _building(self) -> Iterator[None]:
        with _untouched_process(), no_compilation():
            os.environ.update(_environment())
            torch.set_num_threads(self._threads)
            yield
        torch.set_num_threads(self._threads)


def _start(arguments: Mapping[str, Any]) -> "LLM":
    global _living
    from vllm import LLM

    register()
    llm = LLM(**arguments)
    _living += 1
    return llm


def _shut_down(llm: "LLM") -> None:
    """Ends the engine; every reference to ``llm`` must go before :func:`_clean_up`."""
    global _living
    _living -= 1
    with _kept_process_group():
        llm.llm_engine.engine_core.shutdown()


def _clean_up() -> None:
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


def _environment() -> dict[str, str]:
    chosen = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: nothing but our calls decides what is batched
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if not torch.cuda.is_available():
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
