"""The recipe of a preference run, offline or online: the whole, and what in it does not go together."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from align.recipe.base import KeyPath
from align.recipe.judgement import Label, Reward
from align.recipe.learning import Learner, Mixer
from align.recipe.rollout import Model, Prompts, Rollout
from align.recipe.running import Cluster, Common, Evaluation, LocalCluster, Schedule


class PreferenceRecipe(Common):
    """Everything that defines a run which learns from preferences."""

    kind: Literal["preference"] = "preference"
    """Learns from preferences, offline or online; may be left out."""
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

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            text = "; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in conflicts)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": conflicts})
        return self


def _conflicts(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
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
