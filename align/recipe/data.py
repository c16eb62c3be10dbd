"""Sections about prior data: preferences that somebody has collected before."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from align.recipe.base import Section


class PreferenceData(Section):
    """What every source of preference pairs has; TRL's formats load without conversion."""

    text: Literal["chat", "raw"] = "chat"
    """What plain text is: a chat with the model's template, or raw text without one, as in TRL. Messages are chat."""
    streaming: bool = False
    """Read the data as it is needed instead of once at the start."""
    block: int = Field(default=1000, gt=0)
    """Records among which a stream is mixed."""


class JsonlPreferences(PreferenceData):
    """A file with one JSON object a line: `prompt`, `chosen`, `rejected`."""

    type: Literal["jsonl"]
    """A file with one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""


class FilePreferences(PreferenceData):
    """A parquet, JSON, CSV or Arrow file, or a folder of them."""

    type: Literal["files"]
    """A parquet, JSON, CSV or Arrow file, or a folder of them."""
    path: str = Field(min_length=1)
    """The file or folder, relative to the working directory."""
    split: str = Field(default="train", min_length=1)
    """Which of the folder's splits."""


class HubPreferences(PreferenceData):
    """A data set of the Hugging Face hub."""

    type: Literal["hub"]
    """A data set of the Hugging Face hub."""
    name: str = Field(min_length=1)
    """The data set, as `ORG/NAME`."""
    split: str = Field(default="train", min_length=1)
    """Split of the data set."""
    subset: str | None = Field(default=None, min_length=1)
    """Configuration of the data set, where it has several."""


class GymPreferences(PreferenceData):
    """Made pairs: a short sentence with the right number is preferred to the same sentence with a wrong one."""

    type: Literal["gym"]
    """Made pairs from a reasoning-gym task whose answers are whole numbers."""
    task: str = Field(min_length=1)
    """Name of the reasoning-gym task, for example `chain_sum`."""
    size: int = Field(gt=0)
    """Number of problems."""
    seed: int = Field(ge=0)
    """Seed of the problems; held-out prompts are left out, whatever the seeds."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of the task, as reasoning-gym names them."""


Preferences = Annotated[
    JsonlPreferences | FilePreferences | HubPreferences | GymPreferences, Field(discriminator="type")
]


class Offline(Section):
    """Prior preferences, and how much of them is learned."""

    source: Preferences
    """Where they are."""
    updates_per_step: int = Field(default=1, gt=0)
    """Updates of one of the first `schedule.offline_steps` steps, which learn from prior data alone."""
    ratio: float = Field(default=0.0, ge=0)
    """Offline pairs for every online pair in the steps after those; 1 makes half of what is learned offline."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest prompt plus answer; longer pairs are left out and counted. By default the engine's context, or 1024."""
