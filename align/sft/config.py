"""What a supervised warm start is made of. Plain frozen dataclasses; the recipe schema fills them."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """A low-rank adapter (arXiv 2106.09685) in place of full fine-tuning, merged into the weights of the saved policy.

    Its update is scaled by ``alpha / rank``, with ``use_rslora`` by ``alpha / sqrt(rank)`` (arXiv 2312.03732). Without
    ``target_modules`` all linear layers but the head are adapted.
    """

    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """The training. ``batch_size`` examples an update, ``micro_batch_size`` of them a pass; ``max_length`` in tokens.

    ``warmup_steps`` and the two ``*_every`` are updates; ``checkpoint_every`` 0 keeps no checkpoint. ``dtype`` of
    :class:`SFTRun` decides on mixed precision; the optimiser's weights are float32 either way.
    """

    epochs: float = 1.0
    lr: float = 2e-5
    batch_size: int = 16
    micro_batch_size: int = 16
    max_length: int = 512
    warmup_steps: int = 0
    decay: Decay = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    log_every: int = 10
    checkpoint_every: int = 0
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "batch_size", "micro_batch_size", "max_length", "max_grad_norm", "log_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"sft.{name} must be above 0, not {getattr(self, name)}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"sft.batch_size ({self.batch_size}) must be a multiple of sft.micro_batch_size "
                f"({self.micro_batch_size})"
            )
        if self.checkpoint_every % self.log_every:
            # TRL's running means do not survive a resume; behind a log they are empty.
            raise ValueError(
                f"sft.checkpoint_every ({self.checkpoint_every}) must be a multiple of sft.log_every ({self.log_every})"
            )


@dataclass(frozen=True, slots=True)
class JsonlData:
    """A file of ``prompt`` and ``completion``, both texts or both lists of chat messages, as TRL has them."""

    path: str
    size: int | None = None
    type: Literal["jsonl"] = "jsonl"


@dataclass(frozen=True, slots=True)
class WorkedData:
    """The training prompts with an answer each.

    ``reference`` is the prompt's own worked answer; ``steps`` writes a sum out, equation by equation
    (:mod:`align.sft.scripted`, chain_sum only), which is an execution without a plan.
    """

    answers: Literal["reference", "steps"] = "reference"
    type: Literal["worked"] = "worked"


@dataclass(frozen=True, slots=True)
class ExploreExecuteData:
    """Plans and their executions for the training prompts (:mod:`align.sft.explore_execute`).

    ``source``: a program for chain_sum, or the policy itself. Up to ``plans_per_prompt`` different plans of a problem
    are kept; where fewer adhere, new ones are drawn, ``attempts`` times in all. The other numbers are the policy's:
    temperature of the plans, and the longest plan and execution in tokens.
    """

    source: Literal["scripted", "policy"] = "scripted"
    plans_per_prompt: int = 2
    attempts: int = 4
    temperature: float = 1.0
    max_plan_tokens: int = 32
    max_execution_tokens: int = 64
    type: Literal["explore_execute"] = "explore_execute"

    def __post_init__(self) -> None:
        for name in ("plans_per_prompt", "attempts", "temperature", "max_plan_tokens", "max_execution_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name} must be above 0, not {getattr(self, name)}")


Data = JsonlData | WorkedData | ExploreExecuteData


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How held-out prompts are answered, before and after.

    ``plan_tokens`` above 0 adds a second measurement, in which a plan of at most so many tokens is sampled and the rest
    is greedy (:func:`rollouts.explore_execute.plan_then_execute`). An answer is right when its score reaches
    ``threshold``.
    """

    samples_per_prompt: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64
    plan_tokens: int = 0
    threshold: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.plan_tokens < self.max_new_tokens:
            raise ValueError(
                f"evaluation.plan_tokens ({self.plan_tokens}) must leave some of evaluation.max_new_tokens "
                f"({self.max_new_tokens}) to the execution"
            )


@dataclass(frozen=True, slots=True)
class SFTRun:
    """A whole warm start: the model (any name that :func:`rollouts.models.resolve` takes), the data, the training."""

    model: str
    data: Data
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    sft: SFTConfig = field(default_factory=SFTConfig)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def plain(self) -> dict[str, Any]:
        """The run as a dictionary that JSON holds without loss."""
        return asdict(self)
