"""The recipe of a supervised warm start."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.recipe.base import KeyPath, Section, refuse
from align.recipe.learning import LoRAAdapter
from align.recipe.rollout import Model, Prompts
from align.recipe.running import Common


class JsonlExamples(Section):
    """A file of `prompt` and `completion`, both texts or both lists of chat messages, as TRL has them."""

    type: Literal["jsonl"]
    """A file with one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many examples; all by default."""


class WorkedExamples(Section):
    """The training prompts with an answer each."""

    type: Literal["worked"]
    """The training prompts with an answer each."""
    answers: Literal["reference", "steps"] = "reference"
    """`reference`: the prompt's own worked answer. `steps`: a sum written out, equation by equation (`chain_sum`)."""


class ExploreExecuteExamples(Section):
    """Plans, and executions that adhere to them, in the manner of Explore-Execute Chain (arXiv 2509.23946)."""

    type: Literal["explore_execute"]
    """Plans, and executions that adhere to them (arXiv 2509.23946)."""
    source: Literal["scripted", "policy"] = "scripted"
    """Who drafts them: a program for `chain_sum`, or the model itself."""
    plans_per_prompt: int = Field(default=2, gt=0)
    """Different plans of a problem that are kept."""
    attempts: int = Field(default=4, gt=0)
    """Drafts of a plan, where earlier ones did not adhere."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the model's plans."""
    max_plan_tokens: int = Field(default=32, gt=0)
    """Longest plan of the model, in tokens."""
    max_execution_tokens: int = Field(default=64, gt=0)
    """Longest execution of the model, in tokens."""


Examples = Annotated[JsonlExamples | WorkedExamples | ExploreExecuteExamples, Field(discriminator="type")]


class Training(Section):
    """The training, by TRL's `SFTTrainer`."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the examples."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=16, gt=0)
    """Examples of one update."""
    micro_batch_size: int = Field(default=16, gt=0)
    """Examples of one forward and backward pass; must divide `batch_size`."""
    max_length: int = Field(default=512, gt=0)
    """Longest prompt plus answer, in tokens."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from zero."""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    log_every: int = Field(default=10, gt=0)
    """Updates between two lines of metrics."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Updates between two checkpoints, a multiple of `log_every`; 0 keeps none."""
    lora: LoRAAdapter | None = None
    """Train a low-rank update, which is merged into the weights when the policy is saved; all weights by default."""


class TwoPhaseEvaluation(Section):
    """How the held-out prompts are answered, before and after."""

    samples_per_prompt: int = Field(default=1, gt=0)
    """Completions per held-out prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest answer, in tokens."""
    plan_tokens: int = Field(default=0, ge=0)
    """Above 0 also measures answers whose plan of at most so many tokens is sampled and whose rest is greedy."""
    threshold: float = Field(default=1.0, ge=0, le=1)
    """Credit from which an answer counts as right."""
    batch_size: int = Field(default=64, gt=0)
    """Answers that are generated at once."""


class SFTRecipe(Common):
    """Everything that defines a supervised warm start."""

    kind: Literal["sft"]
    """A supervised warm start."""
    model: Model
    """The language model to start from."""
    prompts: Prompts
    """Prompts to make examples of, and held-out ones."""
    data: Examples
    """What is trained on."""
    sft: Training = Field(default_factory=Training)
    """The training, by TRL's `SFTTrainer`."""
    evaluation: TwoPhaseEvaluation = Field(default_factory=TwoPhaseEvaluation)
    """How the held-out prompts are answered, before and after."""

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        refuse(_conflicts(self))
        return self


def _conflicts(recipe: SFTRecipe) -> Iterator[tuple[KeyPath, str]]:
    """Keys that are right by themselves and wrong together; the path is the key to change."""
    sft, evaluation = recipe.sft, recipe.evaluation
    if sft.batch_size % sft.micro_batch_size:
        yield ("sft", "batch_size"), f"must be a multiple of sft.micro_batch_size ({sft.micro_batch_size})"
    if sft.checkpoint_every % sft.log_every:
        yield ("sft", "checkpoint_every"), f"must be a multiple of sft.log_every ({sft.log_every})"
    if evaluation.plan_tokens >= evaluation.max_new_tokens:
        yield (
            ("evaluation", "plan_tokens"),
            f"must be less than evaluation.max_new_tokens ({evaluation.max_new_tokens}), which the execution shares",
        )
    if recipe.prompts.train == recipe.prompts.heldout:
        yield ("prompts", "heldout"), "is the same as prompts.train; held-out prompts must share nothing with them"
