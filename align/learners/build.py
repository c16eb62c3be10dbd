"""From the recipe's learner section to a learner, in whichever process it is to live."""

from collections.abc import Callable
from pathlib import Path

from align import recipe as schema
from align.learners.optim import OptimizerConfig


def learner_factory(recipe: schema.Recipe, model_path: Path, probe_ids: tuple[int, ...]) -> Callable[[], object]:
    """What builds the learner, with a weight store of its own beside it."""
    section, rollout = recipe.learner, recipe.rollout
    plain = rollout.temperature == 1 and rollout.top_p == 1 and rollout.top_k == 0 and rollout.min_new_tokens == 0
    optimizer = OptimizerConfig(**section.optimizer.model_dump())
    dtype, micro_batch_tokens, attention = recipe.model.dtype, section.micro_batch_tokens, section.attention
    loss, name = section.loss, recipe.name
    checkpointing = section.gradient_checkpointing

    def build() -> object:
        from align.learners.preference import DPO, XPO, LearnerConfig, PreferenceLearner
        from align.memory import keep_freed_memory
        from cluster.weights import WeightStore

        keep_freed_memory()
        config = LearnerConfig(
            model_path=model_path,
            optimizer=optimizer,
            dtype=dtype,
            attention=attention,
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=checkpointing,
            probe_ids=probe_ids,
            compare_sampler=plain,
        )
        objective = XPO(loss.beta, loss.alpha, loss.bonus_clip) if loss.type == "xpo" else DPO(loss.beta)
        return PreferenceLearner(config, objective, WeightStore(prefix=name))

    return build
