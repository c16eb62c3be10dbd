"""The recipe of a preference run, offline or online: the whole, and what in it does not go together."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from align.recipe.base import KeyPath, refuse
from align.recipe.data import Offline
from align.recipe.judgement import CheckedReward, Evaluation, Label, PolarReward, Reward, VerifierReward
from align.recipe.learning import Learner, Mixer
from align.recipe.rollout import Model, Prompts, Rollout
from align.recipe.running import Cluster, Common, LocalCluster, Schedule


class PreferenceRecipe(Common):
    """Everything that defines a run which learns from preferences."""

    kind: Literal["preference"] = "preference"
    """Learns from preferences, offline or online; may be left out."""
    model: Model
    """The language model to align."""
    offline: Offline | None = None
    """Preferences that somebody has collected before."""
    prompts: Prompts | None = None
    """What the policy is asked; left out where nothing is sampled."""
    rollout: Rollout | None = None
    """How completions are sampled; left out where nothing is sampled."""
    reward: Reward | None = None
    """What makes a completion good; left out where nothing is judged by itself."""
    label: Label | None = None
    """How completions become preferences; left out where all preferences are offline."""
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

    @property
    def is_online(self) -> bool:
        """Whether any step learns from experience of its own."""
        return self.schedule.offline_steps < self.schedule.total_steps

    @property
    def checked_by(self) -> CheckedReward | None:
        """What says that an answer is right; None where nothing can."""
        if self.evaluation.reward is not None:
            return self.evaluation.reward
        if not isinstance(self.reward, PolarReward):
            return self.reward
        sources = (self.prompts.train, self.prompts.heldout) if self.prompts else ()
        answered = all(source.type == "gym" or source.answer_field is not None for source in sources)
        return VerifierReward(type="verifier") if answered else None

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        refuse(_conflicts(self))
        return self


def _conflicts(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
    """Keys that are right by themselves and wrong together; the path is the key to change."""
    yield from _missing_sections(recipe)
    yield from _schedule_conflicts(recipe.schedule, engine=recipe.rollout is not None)
    yield from _offline_conflicts(recipe)
    yield from _learner_conflicts(recipe)
    if recipe.rollout is not None:
        yield from _rollout_conflicts(recipe.rollout)
        if recipe.is_online:
            yield from _sample_conflicts(recipe, recipe.rollout)
    yield from _prompt_conflicts(recipe)
    if recipe.prompts is not None and recipe.prompts.train == recipe.prompts.heldout:
        yield ("prompts", "heldout"), "is the same as prompts.train; held-out prompts must share nothing with them"


def _prompt_conflicts(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
    """Prompts that lack what judges their answers."""
    if recipe.prompts is None:
        return
    checked = recipe.checked_by
    for key in ("train", "heldout"):
        source = getattr(recipe.prompts, key)
        if source.type == "gym":
            continue
        if checked is not None and checked.type == "verifier" and source.answer_field is None:
            yield ("prompts", key, "answer_field"), "missing, and reward 'verifier' has nothing to check against"
        if isinstance(recipe.reward, PolarReward) and source.reference_field is None:
            yield ("prompts", key, "reference_field"), "missing, and reward 'polar' has nothing to compare with"


def _missing_sections(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
    evaluates = recipe.schedule.evaluate_every > 0
    judged = recipe.label is not None and recipe.label.type == "judge"
    reasons = {
        "offline": [(recipe.schedule.offline_steps > 0, "schedule.offline_steps")],
        "prompts": [(recipe.is_online, "online steps"), (evaluates, "schedule.evaluate_every")],
        "rollout": [(recipe.is_online, "online steps"), (evaluates, "schedule.evaluate_every")],
        "reward": [(recipe.is_online and not judged, "online steps"), (evaluates, "schedule.evaluate_every")],
        "label": [(recipe.is_online, "online steps")],
    }
    for section, needs in reasons.items():
        reason = next((text for needed, text in needs if needed), None)
        if reason and getattr(recipe, section) is None:
            all_offline = " (or make all steps offline: schedule.offline_steps = schedule.total_steps)"
            yield (section,), f"missing, and {reason} need it{all_offline if reason == 'online steps' else ''}"
    if (recipe.prompts is None) != (recipe.rollout is None):
        alone, other = ("prompts", "rollout") if recipe.rollout is None else ("rollout", "prompts")
        yield (alone,), f"is of no use without {other}"


def _rollout_conflicts(rollout: Rollout) -> Iterator[tuple[KeyPath, str]]:
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
    if rollout.engine.type == "vllm" and rollout.engine.weight_transfer != "shm" and rollout.engines > 1:
        yield ("rollout", "engines"), f"weight_transfer '{rollout.engine.weight_transfer}' serves one engine; use 'shm'"


def _sample_conflicts(recipe: PreferenceRecipe, rollout: Rollout) -> Iterator[tuple[KeyPath, str]]:
    """Whether the samples suffice for the pairs that are to be made of them."""
    label, loss = recipe.label, recipe.learner.loss
    if label is None:
        return
    needs_reference = [
        name
        for name, needed in (
            (
                f"label.pairing '{label.pairing}'",
                label.pairing in ("reference", "each_reference", "both") and loss.type != "xpo_onpolicy",
            ),
            ("learner.loss 'xpo'", loss.type == "xpo"),
        )
        if needed
    ]
    if needs_reference and rollout.reference_samples < 1:
        yield ("rollout", "reference_samples"), f"must be at least 1 for {' and '.join(needs_reference)}"
    if label.pairing == "both" and rollout.samples_per_prompt < 2:
        yield ("rollout", "samples_per_prompt"), "label.pairing 'both' needs two samples of the policy"
    if label.pairing == "random" and label.type != "judge" and rollout.samples_per_prompt < 2:
        yield ("rollout", "samples_per_prompt"), "label.pairing 'random' needs two samples of the policy"
    if label.pairing in ("best_worst", "random") and rollout.samples_per_prompt + rollout.reference_samples < 2:
        yield ("rollout", "samples_per_prompt"), f"label.pairing '{label.pairing}' needs two completions of a prompt"
    if loss.type == "xpo" and label.pairing == "random" and label.type != "judge":
        yield (
            ("label", "pairing"),
            "'random' pairs two samples of the policy, and the bonus of 'xpo' is on reference-policy samples: use "
            "reference, best_worst or both, or the loss 'xpo_onpolicy'",
        )
    if loss.type == "xpo_onpolicy":
        yield from _on_policy_conflicts(recipe, rollout, label.pairing)


def _on_policy_conflicts(recipe: PreferenceRecipe, rollout: Rollout, pairing: str) -> Iterator[tuple[KeyPath, str]]:
    mixer = recipe.mixer
    if pairing not in ("random", "best_worst"):
        yield (
            ("label", "pairing"),
            f"'{pairing}' wants a reference-policy sample, and 'xpo_onpolicy' has none: use random or best_worst",
        )
    if rollout.reference_samples:
        yield (
            ("rollout", "reference_samples"),
            "must be 0 for learner.loss 'xpo_onpolicy', whose samples are all the current policy's; 'xpo' is the loss "
            "with reference-policy samples",
        )
    # At most one pair a prompt, and batches of at most one and a half times batch_pairs.
    if mixer.epochs == 1 and mixer.replay_ratio == 0 and 2 * rollout.prompts_per_step < 3 * mixer.batch_pairs:
        yield (
            ("learner", "loss", "type"),
            "'xpo_onpolicy' with one update on each fresh batch is online DPO with noise: for samples of the policy "
            "that is differentiated the bonus has zero mean, E[grad log pi] = 0; raise mixer.epochs, lower "
            "mixer.batch_pairs, or use 'xpo'",
        )


def _learner_conflicts(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
    learner, label = recipe.learner, recipe.label
    if learner.optimizer.decay != "constant" and learner.optimizer.decay_steps == 0:
        yield ("learner", "optimizer", "decay"), f"'{learner.optimizer.decay}' needs learner.optimizer.decay_steps"
    loss = learner.loss
    if loss.type in ("aot", "kto") and learner.adapter.type != "full" and learner.adapter.dropout > 0:
        yield (
            ("learner", "adapter", "dropout"),
            f"must be 0 for '{loss.type}', which compares the pairs of a whole batch",
        )
    if loss.type == "exo" and loss.label_smoothing == 0:
        yield ("learner", "loss", "label_smoothing"), "must be more than 0 for 'exo'"
    soft = label is not None and (label.type == "soft" or (label.type == "judge" and label.label == "soft"))
    if soft and loss.type not in ("dpo", "xpo", "xpo_onpolicy"):
        yield (
            ("learner", "loss", "type"),
            f"'{loss.type}' has no soft form; soft labels go with dpo, xpo or xpo_onpolicy",
        )
    adapter = learner.adapter
    engine = recipe.rollout.engine if recipe.rollout else None
    if adapter.type != "full" and engine and engine.type == "vllm" and engine.weight_transfer != "shm":
        yield (
            ("rollout", "engine", "weight_transfer"),
            f"'{engine.weight_transfer}' sends tensors as they are, and a {adapter.type} policy has to be merged; "
            "use 'shm'",
        )
    if adapter.type == "adalora":
        if adapter.target_rank >= adapter.init_rank:
            yield ("learner", "adapter", "target_rank"), f"must be less than init_rank ({adapter.init_rank})"
        if adapter.tinit + adapter.tfinal >= adapter.total_step:
            yield (
                ("learner", "adapter", "total_step"),
                f"must be more than tinit + tfinal ({adapter.tinit + adapter.tfinal})",
            )


def _offline_conflicts(recipe: PreferenceRecipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.offline is not None and recipe.schedule.offline_steps == 0 and recipe.offline.ratio == 0:
        yield ("offline",), "is never learned from: set schedule.offline_steps or offline.ratio"
    loss = recipe.learner.loss.type
    if not recipe.is_online and loss in ("xpo", "xpo_onpolicy"):
        yield ("learner", "loss", "type"), f"'{loss}' explores, and no step is online; use 'dpo'"


def _schedule_conflicts(schedule: Schedule, engine: bool) -> Iterator[tuple[KeyPath, str]]:
    if engine and schedule.sync_every == 0 and (schedule.checkpoint_every or schedule.evaluate_every):
        yield (
            ("schedule", "sync_every"),
            "0 leaves the engine with the first weights for ever, so that evaluations and continued runs would mislead",
        )
    if schedule.offline_steps > schedule.total_steps:
        yield (
            ("schedule", "offline_steps"),
            f"{schedule.offline_steps} is more than schedule.total_steps ({schedule.total_steps})",
        )
    for key, reason in (
        ("checkpoint_every", "a checkpoint continues with the weights that the engine had"),
        ("evaluate_every", "it is the engine's weights that are evaluated"),
    ):
        every = getattr(schedule, key)
        if every and schedule.sync_every and every % schedule.sync_every:
            yield ("schedule", key), f"must be a multiple of schedule.sync_every ({schedule.sync_every}): {reason}"
