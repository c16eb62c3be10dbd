"""Live transfers: the conversation between a trainer and an engine, without the GPU that carries the tensors."""

import threading
from typing import Any

import pytest

from align.learners.build import LivePublisher
from rollouts.engines.base import EngineError
from rollouts.engines.vllm_weights import LiveSender, receive_live, require_backend


class Trainer:
    """Drives a client through one update as vLLM's trainers do."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.init_weight_transfer_engine({"packed": True})

    def send_weights(self) -> None:
        self._client.start_weight_update()
        self._client.update_weights({"names": ["a"]})
        self._client.update_weights({"names": ["b"]})
        self._client.finish_weight_update()


class LLM:
    def __init__(self, refuse: str = "") -> None:
        self.heard: list[Any] = []
        self._refuse = refuse

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        self.heard.append(("init", request))

    def start_weight_update(self) -> None:
        self.heard.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        self.heard.append(("update", request))
        if self._refuse:
            raise RuntimeError(self._refuse)


@pytest.fixture
def sender() -> Any:
    sender = LiveSender("nccl", Trainer)
    yield sender
    sender.close()


def test_a_trainer_drives_the_engine_through_every_update(sender: LiveSender) -> None:
    llm = LLM()
    publisher = LivePublisher(sender)
    for version in (1, 2):
        receive_live(llm, publisher.publish({}, version))
    sender.wait()
    update = ["start", ("update", {"update_info": {"names": ["a"]}}), ("update", {"update_info": {"names": ["b"]}})]
    assert llm.heard == [("init", {"init_info": {"packed": True}}), *update, *update]


def test_a_refusal_reaches_both_ends(sender: LiveSender) -> None:
    uri = sender.offer()
    with pytest.raises(RuntimeError, match="no room"):
        receive_live(LLM("no room"), uri)
    with pytest.raises(EngineError, match="no room"):
        sender.wait()


def test_an_uri_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="no live transfer"):
        receive_live(LLM(), "nccl:somewhere")


def test_a_stranger_without_the_key_is_refused(sender: LiveSender) -> None:
    backend, host, port, key = sender.offer().split(":")
    errors: list[BaseException] = []

    def intrude() -> None:
        try:
            receive_live(LLM(), f"{backend}:{host}:{port}:{'00' * (len(key) // 2)}")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(errors) == 1
    with pytest.raises(EngineError, match="sending the weights failed"):
        sender.wait()


@pytest.mark.parametrize("name", ["nccl", "ipc"])
def test_gpu_transfers_without_a_gpu_are_one_line(name: str) -> None:
    with pytest.raises(EngineError, match="needs a CUDA GPU"):
        require_backend(name)


def test_unknown_transfers_are_named() -> None:
    with pytest.raises(EngineError, match="choose one of shm, nccl, ipc"):
        require_backend("carrier pigeon")
