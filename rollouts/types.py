"""What the collectors produce: prompts, completions, rollouts and the weights they were made with.

Letters: ``G`` completions per prompt, ``L`` tokens. Log-probabilities are natural logarithms (nats).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Which policy a completion was drawn from."""

    POLICY = "policy"
    REFERENCE = "reference"
    DATASET = "dataset"


class Finish(StrEnum):
    """Why generation ended: ``STOP`` means the end-of-sequence token is the last token of the completion."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to the policy.

    ``reference`` is a worked answer in words (what a reward model compares with), ``answer`` the bare solution (what a
    verifier checks), ``metadata`` whatever the verifier needs beside it.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    ``token_ids`` [L] is exactly what the engine sampled, the end-of-sequence token included; it is never re-made from
    ``text``. ``logprobs`` [L] are the sampler's own, in nats; empty where the origin is a data set.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Finish
    origin: Origin
    policy_version: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, the tokens it was rendered to, and ``G`` completions."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A pointer to published weights; the tensors themselves never travel through it.

    ``uri`` is a safetensors file that the engine can map (``file:/dev/shm/…``), or names a live transfer
    (``nccl:…``, ``ipc:…``). ``probe_ids`` is a fixed sequence and ``probe_logprobs`` [len(probe_ids) - 1] the learner's
    log-probabilities of its tokens from the second on, under exactly these weights; both are empty when the
    publisher is not the learner, and then the engine checks only that the weights arrived whole.
    """

    version: int
    uri: str
    probe_ids: tuple[int, ...] = ()
    probe_logprobs: tuple[float, ...] = ()
