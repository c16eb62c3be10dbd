"""Sections about running: when, where, and where the numbers go."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section


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
    reward_resources: Resources = Field(default_factory=lambda: Resources(num_cpus=0.0))
    """Reserved for the reward model's actor; it takes turns with the others, and by default books nothing."""
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


class Common(Section):
    """What recipes of every kind have."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder: letters, digits, `.`, `_` and `-`."""
    seed: int = Field(default=0, ge=0)
    """Every random choice of the run derives from it."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Where the numbers go."""
    run: Run = Field(default_factory=Run)
    """Where the run keeps its files."""

    def run_dir(self) -> Path:
        """The run folder, with the placeholders filled in."""
        return Path(self.run.dir.replace("{name}", self.name).replace("{seed}", str(self.seed)))
