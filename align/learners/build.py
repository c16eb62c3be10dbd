"""From the recipe's learner section to a learner, in whichever process it is to live."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from align import recipe as schema
from align.learners.optim import OptimizerConfig
from align.recipe.learning import Adapter, Loss

SMOOTHING = {"cdpo": 0.1, "robust": 0.1, "exo": 1e-3, "aot": 0.0}
"""Label smoothing where a recipe names none: exo's is its paper's, aot's paper has none."""


class Sender(Protocol):
    """A live transfer to one engine (:class:`rollouts.engines.vllm_weights.LiveSender`)."""

    def offer(self) -> str: ...

    def close(self) -> None: ...


class LivePublisher:
    """Offers the policy's own tensors over NCCL or CUDA IPC instead of writing them down."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def publish(self, tensors: Mapping[str, Any], version: int) -> str:
        """The URI of the transfer; the tensors travel when the engine takes it."""
        return self._sender.offer()

    def close(self) -> None:
        self._sender.close()


def learner_factory(
    recipe: schema.PreferenceRecipe, model_path: Path, probe_ids: tuple[int, ...]
) -> Callable[[], object]:
    """What builds the learner, with a weight store of its own beside it."""
    section, rollout = recipe.learner, recipe.rollout
    plain = rollout is None or (
        rollout.temperature == 1 and rollout.top_p == 1 and rollout.top_k == 0 and rollout.min_new_tokens == 0
    )
    optimizer = OptimizerConfig(**section.optimizer.model_dump())
    dtype, micro_batch_tokens, attention = recipe.model.dtype, section.micro_batch_tokens, section.attention
    name = recipe.name
    engine = rollout.engine if rollout else None
    transfer = engine.weight_transfer if engine and engine.type == "vllm" else "shm"
    checkpointing = section.gradient_checkpointing

    def make_publisher(policy: Any) -> Any:
        if transfer == "shm":
            from cluster.weights import WeightStore

            return WeightStore(prefix=name)
        from rollouts.engines.vllm_weights import cuda_sender

        return LivePublisher(cuda_sender(transfer, policy))

    def build() -> object:
        from align.learners.preference import LearnerConfig, PreferenceLearner

        config = LearnerConfig(
            model_path=model_path,
            optimizer=optimizer,
            dtype=dtype,
            attention=attention,
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=checkpointing,
            adapter=adapter_config(section.adapter),
            seed=recipe.seed,
            probe_ids=probe_ids,
            explore="policy" if section.loss.type == "xpo_onpolicy" else "reference",
            compare_sampler=plain,
        )
        return PreferenceLearner(config, _objective(section.loss), make_publisher)

    return build


def _objective(loss: Loss) -> Any:
    from align.learners.objectives import DPO, XPO, Schedule, VariantLoss

    beta = Schedule(loss.beta, loss.beta_schedule)
    match loss.type:
        case "dpo":
            return DPO(beta)
        case "xpo":
            return XPO(beta, Schedule(loss.alpha, loss.alpha_schedule), loss.bonus_clip)
        case "xpo_onpolicy":
            return XPO(beta, Schedule(loss.alpha_schedule[-1], loss.alpha_schedule), loss.bonus_clip)
        case variant:
            options = loss.model_dump(exclude={"type", "beta", "beta_schedule"})
            if "label_smoothing" in options and options["label_smoothing"] is None:
                options["label_smoothing"] = SMOOTHING[variant]
            return VariantLoss(variant, beta, options)


def adapter_config(section: Adapter) -> Any:
    """The adapter of a section; None where every weight is trained."""
    from align.learners.adapters import AdapterConfig

    if section.type == "full":
        return None
    options = section.model_dump(exclude={"target_modules"})
    return AdapterConfig(**options, target_modules=section.target_modules or "all-linear")
