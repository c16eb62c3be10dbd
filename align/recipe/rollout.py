"""Sections about experience: the model, the prompts, the engines, the sampling."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from align.recipe.base import Section


class Model(Section):
    """The language model to align."""

    path: str = Field(min_length=1)
    """Where the weights are: a folder, `hub:ORG/NAME`, or `pkg:PACKAGE/FILE.gguf` (inside an installed package)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of generation and of the learner's matrix products; the optimizer's weights are always float32."""


class GymPrompts(Section):
    """Problems made by reasoning-gym, with verifiable answers."""

    type: Literal["gym"]
    """Problems made by reasoning-gym."""
    task: str = Field(min_length=1)
    """Name of the reasoning-gym task, for example `chain_sum`."""
    size: int = Field(gt=0)
    """Number of problems."""
    seed: int = Field(ge=0)
    """Seed of the problems; train and held-out problems share none, whatever their seeds."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of the task, as reasoning-gym names them."""


class JsonlPrompts(Section):
    """Prompts from a file with one JSON object a line."""

    type: Literal["jsonl"]
    """A file with one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    prompt_field: str = Field(default="prompt", min_length=1)
    """Field with the question: text, or a list of chat messages."""
    reference_field: str | None = None
    """Field with a worked answer, for reward models that compare with one."""
    answer_field: str | None = None
    """Field with the bare solution, for verifiers."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many prompts; all by default."""


class HubPrompts(Section):
    """Prompts from a data set of the Hugging Face hub."""

    type: Literal["hub"]
    """A data set of the Hugging Face hub."""
    name: str = Field(min_length=1)
    """The data set, as `ORG/NAME`."""
    split: str = Field(default="train", min_length=1)
    """Split of the data set; slices such as `train[:1000]` work."""
    prompt_field: str = Field(default="prompt", min_length=1)
    """Field with the question: text, or a list of chat messages."""
    reference_field: str | None = None
    """Field with a worked answer, for reward models that compare with one."""
    answer_field: str | None = None
    """Field with the bare solution, for verifiers."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many prompts; all by default."""


PromptSource = Annotated[GymPrompts | JsonlPrompts | HubPrompts, Field(discriminator="type")]


class Prompts(Section):
    """What the policy is asked."""

    train: PromptSource
    """Prompts to learn from."""
    heldout: PromptSource
    """Prompts for evaluation only; they must share nothing with `train`."""


class VLLMEngine(Section):
    """vLLM, on the CPU or on GPUs."""

    type: Literal["vllm"]
    """vLLM, on the CPU or on GPUs."""
    max_context: int = Field(default=1024, ge=34)
    """Longest prompt plus completion, in tokens."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the key-value cache on the CPU, in GiB."""
    weight_transfer: Literal["shm", "nccl", "ipc"] = "shm"
    """How new weights arrive: shared memory (CPU), NCCL between GPUs, or CUDA IPC on one GPU."""
    enforce_eager: bool = True
    """Run without compilation and CUDA graphs: starts faster; the right choice on the CPU."""
    max_num_seqs: int = Field(default=256, gt=0)
    """Most sequences that are generated at once."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """GPUs that share one engine's weights."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine may take; not used on the CPU."""
    probe_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the probe's tokens, as a
    share of 1 + their mean size (nats)."""


class TransformersEngine(Section):
    """The `generate` method of transformers: slower, and runs wherever PyTorch does."""

    type: Literal["transformers"]
    """The `generate` method of transformers."""
    max_context: int = Field(default=1024, gt=1)
    """Longest prompt plus completion, in tokens."""
    batch_size: int = Field(default=32, gt=0)
    """Sequences that are generated at once."""
    probe_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the probe's tokens, as a
    share of 1 + their mean size (nats)."""


Engine = Annotated[VLLMEngine | TransformersEngine, Field(discriminator="type")]


class Rollout(Section):
    """How completions are sampled."""

    engine: Engine
    """What generates."""
    engines: int = Field(default=1, gt=0)
    """Number of engine replicas that share the prompts of a step."""
    prompts_per_step: int = Field(default=64, gt=0)
    """Prompts of one step."""
    samples_per_prompt: int = Field(default=1, gt=0)
    """Completions per prompt from the current policy."""
    reference_samples: int = Field(default=1, ge=0)
    """Completions per prompt from the frozen reference policy, drawn once and cached; 0 where no loss wants them."""
    reference_ahead: int = Field(default=1, gt=0)
    """Steps whose reference-policy completions are drawn in one go."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the theory of XPO assumes 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this total probability; 1 switches it off."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many most likely tokens; 0 switches it off."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest completion, in tokens."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Shortest completion, in tokens; equal to `max_new_tokens` it forces the length (benchmarks)."""
    system_prompt: str | None = None
    """A system message before every prompt."""
