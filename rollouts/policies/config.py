"""What a policy network looks like, as plain values that are saved beside its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

EncoderName = Literal["none", "robofume"]


class PolicyError(ValueError):
    """A policy cannot be built, loaded or asked; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Sizes of the inputs and of the network.

    ``state_size`` and ``instruction_size`` may be 0: nothing of the kind is given. ``state_columns`` are those of the
    state's numbers that the policy sees, None all of them. ``image_size`` is (height, width) in
    pixels where ``encoder`` looks at images. ``image_features`` is the size that the encoder's output is projected to,
    through LayerNorm and tanh as in DrQ (arXiv 2004.13649); 0 leaves it flat, as RoboFuME has it, which is tens of
    thousands of numbers. ``strides`` are those of the encoder's four convolutions: RoboFuME's are the default, and
    larger ones make images affordable on a CPU.

    ``log_std_offset`` is added to the network's output before the clamp, so that a fresh policy has a standard
    deviation of ``exp(log_std_offset)`` before the tanh.

    Raises :class:`PolicyError` for sizes that cannot be.
    """

    state_size: int
    action_size: int
    instruction_size: int = 0
    image_size: tuple[int, int] | None = None
    hidden: tuple[int, ...] = (128, 128)
    encoder: EncoderName = "none"
    image_features: int = 0
    strides: tuple[int, int, int, int] = (2, 1, 1, 1)
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    log_std_offset: float = -1.0
    state_columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.action_size < 1 or not self.hidden or min(self.hidden) < 1:
            raise PolicyError(f"a policy needs actions and hidden units, got {self.action_size} and {self.hidden}")
        if self.log_std_min >= self.log_std_max:
            raise PolicyError(f"log_std_min {self.log_std_min} must be below log_std_max {self.log_std_max}")
        if (self.encoder == "none") != (self.image_size is None):
            raise PolicyError(
                f"encoder {self.encoder!r} does not go with image_size {self.image_size}: images need an encoder, "
                "and an encoder needs their size"
            )
        if self.state_columns is not None and not set(self.state_columns) <= set(range(self.state_size)):
            raise PolicyError(f"a state of {self.state_size} has no columns {list(self.state_columns)}")
        if self.encoder == "none" and self.seen_size < 1:
            raise PolicyError("a policy needs a state or images to look at")

    @property
    def seen_size(self) -> int:
        """How many of the state's numbers the policy sees."""
        return self.state_size if self.state_columns is None else len(self.state_columns)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PolicyConfig":
        """The inverse of :meth:`to_json`; raises :class:`PolicyError` for keys that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(content.keys() - known):
            raise PolicyError(f"unknown keys in a policy's config.json: {', '.join(unknown)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise PolicyError(f"a policy's config.json is not complete: {error}") from error
