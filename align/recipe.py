"""The recipe schema: one frozen model per section, unknown keys refused, defaults from the papers.

It imports neither torch, ray nor vllm, so that a recipe is checked in a moment; :mod:`align.recipe_load` reads the
files.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

KeyPath = tuple[str | int, ...]


class Section(BaseModel):
    """What every section shares: nothing unknown, nothing coerced, nothing changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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


class VerifierReward(Section):
    """1 for a right answer and 0 for a wrong one, from the verifier of the prompt's own task."""

    type: Literal["verifier"]
    """The verifier of the prompt's own task."""
    threshold: float = Field(default=1.0, ge=0, le=1)
    """Less credit than this counts as 0; with 1 only a wholly right answer is worth something."""
    extract: Literal["auto", "last_number", "text"] = "auto"
    """What of a completion is its answer: the last number, all of the text, or whichever the right answer is."""


Reward = VerifierReward

Pairing = Literal["reference", "best_worst", "both"]
Ties = Literal["drop", "random"]


class ArgmaxLabel(Section):
    """The completion with the higher score is preferred, always."""

    type: Literal["argmax"]
    """The higher score is preferred, always."""
    pairing: Pairing = "reference"
    """`reference`: a policy sample against the reference policy's (Algorithm 1). `best_worst`: of all of a prompt's.
    `both`: the former, and the policy's best against its worst."""
    ties: Ties = "drop"
    """What becomes of a pair with equal scores."""


class BradleyTerryLabel(Section):
    """The preference is sampled from the Bradley-Terry model of the two scores."""

    type: Literal["bradley_terry"]
    """The preference is sampled with probability sigmoid(score difference / temperature)."""
    temperature: float = Field(default=1.0, gt=0)
    """Score difference, in the reward's units, that makes the odds e to 1."""
    pairing: Pairing = "reference"
    """`reference`: a policy sample against the reference policy's (Algorithm 1). `best_worst`: of all of a prompt's.
    `both`: the former, and the policy's best against its worst."""
    ties: Ties = "drop"
    """What becomes of a pair with equal scores."""


Label = Annotated[ArgmaxLabel | BradleyTerryLabel, Field(discriminator="type")]


class XPOLoss(Section):
    """Exploratory preference optimization (arXiv 2405.21046, Algorithm 1)."""

    type: Literal["xpo"]
    """Exploratory preference optimization (arXiv 2405.21046)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the KL regularisation towards the reference policy."""
    alpha: float = Field(default=1e-5, ge=0)
    """Weight of the optimism term; 0 is online DPO."""
    bonus_clip: float = Field(default=500.0, gt=0)
    """The log-ratio inside the optimism term is clipped to this many nats (the paper's appendix E)."""


class DPOLoss(Section):
    """Direct preference optimization (arXiv 2305.18290)."""

    type: Literal["dpo"]
    """Direct preference optimization (arXiv 2305.18290)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the KL regularisation towards the reference policy."""


Loss = Annotated[XPOLoss | DPOLoss, Field(discriminator="type")]


class Optimizer(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from zero."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to zero after the warm-up."""
    decay_steps: int = Field(default=0, ge=0)
    """Updates over which it falls; `linear` and `cosine` need a number."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""


class PreferenceLearner(Section):
    """Learns from pairs of completions."""

    type: Literal["preference"]
    """Learns from pairs of completions."""
    loss: Loss
    """The objective."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """AdamW and its learning-rate schedule."""
    micro_batch_tokens: int = Field(default=1024, gt=0)
    """Most tokens of one forward and backward pass; memory grows with it, results do not change."""
    attention: Literal["eager", "sdpa"] = "eager"
    """How attention is computed: `eager` is quicker on the CPU for short sequences, `sdpa` needs less memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


Learner = PreferenceLearner


class Mixer(Section):
    """All pairs so far, and what of them the learner sees next."""

    batch_pairs: int = Field(default=64, gt=0)
    """Pairs of one update."""
    replay_ratio: float = Field(default=1.0, ge=0)
    """Old pairs replayed for every new one."""
    capacity: int | None = Field(default=None, gt=0)
    """Pairs that are kept; without a number all are (Algorithm 1)."""


class Schedule(Section):
    """When things happen, in steps of the loop; 0 is never."""

    total_steps: int = Field(gt=0)
    """Length of the run."""
    offline_steps: int = Field(default=0, ge=0)
    """The first so many steps learn from prior data alone."""
    sync_every: int = Field(default=1, ge=0)
    """Steps between two transfers of the learner's weights to the engines."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between two evaluations; with a number there is one before the first and one after the last step too."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between two checkpoints; with a number there is one after the last step too."""
    keep_checkpoints: int = Field(default=1, gt=0)
    """Checkpoints that are kept, the newest first."""


class Evaluation(Section):
    """How the held-out prompts are answered."""

    samples_per_prompt: int = Field(default=1, gt=0)
    """Completions per held-out prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""


class Resources(Section):
    """What Ray reserves for one actor."""

    num_cpus: float = Field(default=1.0, ge=0)
    """Logical CPUs."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs; a share of one where several actors live on it."""


class LocalCluster(Section):
    """Everything in this one process."""

    type: Literal["local"]
    """Everything in this one process."""


class RayCluster(Section):
    """Engines and learner in Ray actors."""

    type: Literal["ray"]
    """Engines and learner in Ray actors."""
    address: str | None = Field(default=None, min_length=1)
    """HOST:PORT of a head, or `auto` for the one on this machine; by default the cluster of this job or of
    `RAY_ADDRESS`, and where there is none a small one that ends with the run."""
    num_cpus: int | None = Field(default=None, gt=0)
    """Logical CPUs of a cluster started here; the machine's by default."""
    learner_actor: bool = True
    """Host the learner in an actor of its own, not in the driver."""
    engine_resources: Resources = Field(default_factory=Resources)
    """Reserved for each engine."""
    learner_resources: Resources = Field(default_factory=Resources)
    """Reserved for the learner's actor."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Longest time that one call to an actor may take (generation, update, weight transfer), in seconds."""
    start_deadline_s: float = Field(default=600.0, gt=0)
    """Longest time that an actor may take to start, in seconds."""


Cluster = Annotated[LocalCluster | RayCluster, Field(discriminator="type")]


class Wandb(Section):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes to the run folder and needs no network; `wandb sync` uploads it later."""
    project: str = Field(default="polestar", min_length=1)
    """Project of the run."""
    entity: str | None = None
    """User or team; the account's own by default."""
    group: str | None = None
    """Runs of one group are shown together."""
    tags: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Words to find the run by."""


class Console(Section):
    """What the terminal shows."""

    table_every: int = Field(default=5, ge=0)
    """Steps between two tables of samples; 0 shows none."""
    table_rows: int = Field(default=3, gt=0)
    """Rows of the table."""


class Tracking(Section):
    """Where the numbers go; `metrics.jsonl` in the run folder is always written."""

    wandb: Wandb = Field(default_factory=Wandb)
    """Weights & Biases."""
    console: Console = Field(default_factory=Console)
    """What the terminal shows."""
    kl_limit: float = Field(default=25.0, gt=0)
    """An alert goes off when the policy is further than this from the reference policy, in nats per completion."""


class Run(Section):
    """Where the run keeps its files."""

    dir: str = Field(default="runs/{name}", min_length=1)
    """The run folder, relative to the working directory; `{name}` and `{seed}` stand for the recipe's. An existing run
    in it is continued."""


class Recipe(Section):
    """Everything that defines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder: letters, digits, `.`, `_` and `-`."""
    seed: int = Field(default=0, ge=0)
    """Every random choice of the run derives from it."""
    model: Model
    """The language model to align."""
    prompts: Prompts
    """What the policy is asked."""
    rollout: Rollout
    """How completions are sampled."""
    reward: Reward
    """What makes a completion good."""
    label: Label
    """How rewards become preferences."""
    learner: Learner
    """How preferences become weights."""
    mixer: Mixer = Field(default_factory=Mixer)
    """All pairs so far, and what of them the learner sees next."""
    schedule: Schedule
    """When things happen."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How the held-out prompts are answered."""
    cluster: Cluster = Field(default_factory=lambda: LocalCluster(type="local"))
    """Where the parts live."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Where the numbers go."""
    run: Run = Field(default_factory=Run)
    """Where the run keeps its files."""

    def run_dir(self) -> Path:
        """The run folder, with the placeholders filled in."""
        return Path(self.run.dir.replace("{name}", self.name).replace("{seed}", str(self.seed)))

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            text = "; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in conflicts)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": conflicts})
        return self


def _conflicts(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Keys that are right by themselves and wrong together; the path is the key to change."""
    rollout, schedule, label = recipe.rollout, recipe.schedule, recipe.label
    if rollout.max_new_tokens >= rollout.engine.max_context:
        yield (
            ("rollout", "max_new_tokens"),
            f"{rollout.max_new_tokens} leaves no room for a prompt in rollout.engine.max_context "
            f"({rollout.engine.max_context})",
        )
    if rollout.min_new_tokens > rollout.max_new_tokens:
        yield (
            ("rollout", "min_new_tokens"),
            f"{rollout.min_new_tokens} is more than rollout.max_new_tokens ({rollout.max_new_tokens})",
        )
    needs_reference = [
        name
        for name, needed in (
            (f"label.pairing '{label.pairing}'", label.pairing != "best_worst"),
            ("learner.loss 'xpo'", recipe.learner.loss.type == "xpo"),
        )
        if needed
    ]
    if needs_reference and rollout.reference_samples < 1:
        yield ("rollout", "reference_samples"), f"must be at least 1 for {' and '.join(needs_reference)}"
    if label.pairing == "both" and rollout.samples_per_prompt < 2:
        yield ("rollout", "samples_per_prompt"), "label.pairing 'both' needs two samples of the policy"
    if label.pairing == "best_worst" and rollout.samples_per_prompt + rollout.reference_samples < 2:
        yield ("rollout", "samples_per_prompt"), "label.pairing 'best_worst' needs two completions of a prompt"
    if schedule.offline_steps > schedule.total_steps:
        yield (
            ("schedule", "offline_steps"),
            f"{schedule.offline_steps} is more than schedule.total_steps ({schedule.total_steps})",
        )
    optimizer = recipe.learner.optimizer
    if optimizer.decay != "constant" and optimizer.decay_steps == 0:
        yield ("learner", "optimizer", "decay"), f"'{optimizer.decay}' needs learner.optimizer.decay_steps"
    if rollout.engine.type == "vllm" and rollout.engine.weight_transfer != "shm" and rollout.engines > 1:
        yield ("rollout", "engines"), f"weight_transfer '{rollout.engine.weight_transfer}' serves one engine; use 'shm'"
    if schedule.checkpoint_every and schedule.sync_every and schedule.checkpoint_every % schedule.sync_every:
        yield (
            ("schedule", "checkpoint_every"),
            f"must be a multiple of schedule.sync_every ({schedule.sync_every}): a checkpoint continues with the "
            "weights that the engine had",
        )
    if recipe.prompts.train == recipe.prompts.heldout:
        yield ("prompts", "heldout"), "is the same as prompts.train; held-out prompts must share nothing with them"


def schema_text() -> str:
    """The JSON schema that editors read beside the recipes, as the text of the file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()
    return json.dumps(schema, indent=2) + "\n"
