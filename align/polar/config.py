"""What the training of a policy discriminator is made of."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from align.learners.adapters import AdapterConfig

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class PolarTraining:
    """Pre-training and fine-tuning alike: the triples differ, and the learning rate.

    Defaults are those of the released configurations (AdamW with betas 0.9 and 0.95, no decay, clipping at 1, a warm-up
    of 3% and a cosine to a tenth). ``auto`` takes the paper's fits (:mod:`align.polar.hyperparameters`): the learning
    rate then needs ``backbone_tokens``, what the backbone was pre-trained on, and training of all weights, which is
    what was fitted. ``batch_size`` pairs an update, ``micro_batch_size`` of them a pass; ``max_length`` and
    ``max_response_length`` in tokens, by default the model's own; the three ``*_every`` in updates, 0 is never.
    ``dtype`` bfloat16 is mixed precision over float32 weights, and the format of the trained model. An adapter ``lora``
    is merged into it. ``adapter`` is the folder of one that was trained on the same starting model, with the settings
    of ``lora``, to go on with: pre-training and fine-tuning then make one adapter.
    """

    lr: float | Auto = "auto"
    batch_size: int | Auto = "auto"
    micro_batch_size: int = 4
    epochs: float = 1.0
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora: AdapterConfig | None = None
    adapter: str | None = None
    gradient_checkpointing: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_length: int | None = None
    max_response_length: int | None = None
    backbone_tokens: float | None = None
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 0
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name in (
            "lr", "batch_size", "micro_batch_size", "epochs", "max_grad_norm", "max_length", "max_response_length",
            "backbone_tokens", "log_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in ("auto", None) and value <= 0:
                raise ValueError(f"training.{name} must be above 0, not {value}")
        for name in ("warmup_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"training.{name} is a share of 0 to 1, not {getattr(self, name)}")
        if self.batch_size != "auto" and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.micro_batch_size "
                f"({self.micro_batch_size})"
            )
        if self.checkpoint_every % self.log_every:
            # TRL's running means do not survive a resume; behind a log they are empty.
            raise ValueError(
                f"training.checkpoint_every ({self.checkpoint_every}) must be a multiple of training.log_every "
                f"({self.log_every})"
            )
        if self.lora and self.lora.type != "lora":
            raise ValueError(f"training.lora must be of type lora, not {self.lora.type}: TRL moves no rank budgets")
        if self.adapter and not self.lora:
            raise ValueError("training.adapter goes on with a low-rank update: give training.lora its settings")
        if self.lr == "auto" and self.lora:
            raise ValueError("training.lr auto is fitted to training of all weights: give a number with an adapter")
        if self.lr == "auto" and self.backbone_tokens is None:
            raise ValueError(
                "training.lr auto needs training.backbone_tokens, the tokens that the backbone was pre-trained on "
                "(SmolLM2-135M: 2e12), or give a number"
            )

    def plain(self) -> dict[str, Any]:
        """The settings as a dictionary that JSON holds without loss."""
        return asdict(self)
