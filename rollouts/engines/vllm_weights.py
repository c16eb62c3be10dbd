"""Which ways weights take into vLLM, and the trainer's end of the live ones.

- ``shm`` (CPU and GPU): a safetensors file in shared memory; :mod:`rollouts.engines.vllm_worker` maps it.
- ``nccl``, ``ipc`` (GPU): vLLM's own backends. vLLM's trainer engine must drive the inference side while it sends, so
  :class:`LiveSender` runs it in a thread of the learner's process, and the ``uri`` of the update names a socket over
  which :func:`receive_live`, in the engine's process, obeys it. The GPU transfers themselves need CUDA; without it the
  tests cover the conversation, the choice by configuration and its errors only.
"""

import functools
import secrets
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, Final, Protocol

from rollouts.engines.base import EngineError

if TYPE_CHECKING:
    import torch

BACKENDS: Final = ("shm", "nccl", "ipc")
DEADLINE_S: Final = 300.0


@functools.cache
def register() -> None:
    """Entry point ``vllm.general_plugins``: makes the ``shm`` backend known to vLLM in this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(
        "shm", "rollouts.engines.vllm_worker", "SharedMemoryWeightTransferEngine"
    )


def require_backend(name: str) -> None:
    """Raises :class:`EngineError` when the backend is unknown or needs a GPU that is not there."""
    if name not in BACKENDS:
        raise EngineError(f"unknown weight_transfer '{name}'; choose one of {', '.join(BACKENDS)}")
    if name != "shm":
        import torch

        if not torch.cuda.is_available():
            raise EngineError(f"weight_transfer '{name}' needs a CUDA GPU and there is none; use weight_transfer 'shm'")


class Trainer(Protocol):
    """The part of vLLM's ``TrainerWeightTransferEngine`` that sends."""

    def send_weights(self) -> None: ...


class ControlledLLM(Protocol):
    """The part of ``vllm.LLM`` that a trainer drives."""

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, request: dict[str, Any]) -> None: ...


class LiveSender:
    """The learner's end of an ``nccl`` or ``ipc`` transfer to one engine.

    ``connect`` makes vLLM's trainer from a client; see :func:`cuda_sender`. Every :meth:`offer` must be followed by the
    engine's ``load_weights`` on its URI, then by :meth:`wait`.
    """

    def __init__(self, backend: str, connect: Callable[[Any], Trainer], host: str = "127.0.0.1") -> None:
        self._connect = connect
        self._trainer: Trainer | None = None
        self._client = _SocketClient()
        self._key = secrets.token_bytes(16)
        self._listener = Listener((host, 0), authkey=self._key)
        address = self._listener.address
        self._uri = f"{backend}:{host}:{address[1]}:{self._key.hex()}"
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def offer(self) -> str:
        """Start sending the weights as they are now; returns the URI for :class:`rollouts.types.WeightUpdate`."""
        self.wait()
        self._thread = threading.Thread(target=self._send, name="weights", daemon=True)
        self._thread.start()
        return self._uri

    def wait(self) -> None:
        """Returns when the last offer has been taken; raises what went wrong with it."""
        if self._thread is None:
            return
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise EngineError(f"no engine took the weights within {DEADLINE_S:.0f} s")
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise EngineError(f"sending the weights failed: {error}") from error

    def close(self) -> None:
        """Close the socket."""
        self._listener.close()

    def _send(self) -> None:
        try:
            with self._listener.accept() as connection:
                self._client.connection = connection
                if self._trainer is None:
                    self._trainer = self._connect(self._client)
                self._trainer.send_weights()
        except Exception as error:
            self._error = error  # raised by wait() in the learner's thread


def cuda_sender(backend: str, module: "torch.nn.Module", host: str = "127.0.0.1", port: int = 29600) -> LiveSender:
    """A :class:`LiveSender` of a module's parameters over NCCL (``host``, ``port``: its rendezvous) or CUDA IPC."""
    require_backend(backend)
    from vllm.distributed.weight_transfer.base import ModuleSource, TrainerInitInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info: TrainerInitInfo
    if backend == "nccl":
        info = NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=2, rank=0)
    else:
        info = IPCTrainerInitInfo(rank=0)
    return LiveSender(
        backend,
        lambda client: WeightTransferTrainerFactory.trainer_init(info, client=client, source=ModuleSource(module)),
        host,
    )


def receive_live(llm: ControlledLLM, uri: str) -> None:
    """Lets the trainer behind ``uri`` drive ``llm`` through one update, up to but without its finish."""
    try:
        _, host, port, key = uri.split(":")
        address, secret = (host, int(port)), bytes.fromhex(key)
    except ValueError as error:
        raise ValueError(f"'{uri}' is no live transfer; BACKEND:HOST:PORT:KEY is one") from error
    steps: dict[str, Callable[[Any], None]] = {
        "init": lambda info: llm.init_weight_transfer_engine({"init_info": info}),
        "start": lambda _: llm.start_weight_update(),
        "update": lambda info: llm.update_weights({"update_info": info}),
        "finish": lambda _: None,
    }
    with Client(address, authkey=secret) as connection:
        while True:
            step, info = _receive(connection)
            try:
                steps[step](info)
            except Exception as error:
                connection.send(str(error) or type(error).__name__)
                raise
            connection.send(None)
            if step == "finish":
                return


class _SocketClient:
    """vLLM's ``VLLMWeightSyncClient`` over a socket: every call waits for the engine's answer."""

    connection: Connection

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init", init_info)

    def start_weight_update(self) -> None:
        self._call("start", None)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish", weight_version)

    def _call(self, step: str, info: Any) -> None:
        self.connection.send((step, info))
        if (error := _receive(self.connection)) is not None:
            raise EngineError(f"the engine refused '{step}': {error}")


def _receive(connection: Connection) -> Any:
    if not connection.poll(DEADLINE_S):
        raise EngineError(f"the other end of the weight transfer was silent for {DEADLINE_S:.0f} s")
    return connection.recv()
