"""Weights & Biases as a sink: offline unless asked, inside the run folder, one W&B run however often it is resumed."""

import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from align.errors import UserError
from align.protocols import Metrics
from align.tracking.alerts import AlertOnce
from align.tracking.samples import SampleRow

SAMPLE_COLUMNS: list[str | int] = ["step", *(field.name for field in dataclasses.fields(SampleRow))]
Mode = Literal["online", "offline", "disabled"]


class WandbSink:
    """Logs to ``<folder>/wandb``. ``config`` is the resolved recipe, ``title`` the run's display name.

    The run id lives in ``<folder>/wandb/run_id`` and in the checkpoint, so that every resume continues the same W&B
    run; a step that was logged before the kill and again after it appears once, because W&B ignores steps it has.
    ``kl_limit`` (nats per completion) sets off an alert. ``finish_s`` bounds the wait for uploads at the end; what is
    not uploaded by then stays in the folder for ``wandb sync``.
    """

    name = "wandb"

    def __init__(
        self,
        folder: Path,
        mode: Mode = "offline",
        project: str = "polestar",
        title: str | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        kl_limit: float = 25.0,
        init_s: float = 60.0,
        finish_s: float = 60.0,
    ) -> None:
        self._folder, self._mode, self._project, self._title = folder, mode, project, title
        self._config, self._entity, self._group, self._tags = dict(config or {}), entity, group, tuple(tags)
        self._init_s, self._finish_s = init_s, finish_s
        self._alerts = AlertOnce(kl_limit)
        self._run: Any = None
        self._table: Any = None
        self._id = ""

    def open(self) -> None:
        """Starts the W&B run; raises ``UserError`` when that fails (no key, no network)."""
        if self._mode == "disabled" or self._run is not None:
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        # Tables are staged here until they are synced; by default that is the home folder, where nobody looks.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / "wandb" / "data"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._folder / "wandb" / "cache"))
        import wandb

        self._id = self._keep_id(self._id)
        try:
            self._run = wandb.init(
                project=self._project,
                name=self._title,
                id=self._id,
                resume="allow",
                entity=self._entity,
                group=self._group,
                tags=self._tags,
                dir=str(self._folder),
                config=self._config,
                mode=self._mode,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_code=True,
                    init_timeout=self._init_s,
                    finish_timeout=self._finish_s,
                ),
            )
        except (wandb.Error, OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"W&B did not start ({reason}): set tracking.wandb.mode=offline, or run 'wandb login'"
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("eval/accuracy", step_metric="step", summary="max,last")
        self._table = wandb.Table(columns=SAMPLE_COLUMNS, log_mode="INCREMENTAL")

    def phase(self, name: str) -> None:
        """Phases are in the metrics already."""

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        if self._run is None:
            return
        for row in rows:
            self._table.add_data(step, *dataclasses.astuple(row))
        # The same explicit step as the metrics that follow: W&B joins both into one row of history.
        self._run.log({"samples": self._table}, step=step)

    def write(self, step: int, metrics: Metrics) -> None:
        if self._run is None:
            return
        self._run.log({"step": step, **metrics}, step=step, commit=True)
        for alert in self._alerts.new(step, metrics):
            self._run.alert(title=alert.title, text=alert.text, level="WARN")

    def media(self, name: str, file: Path, step: int) -> None:
        """Logs a picture or video under a name with ``step``, whose numbers must follow: they end the step."""
        if self._run is None:
            return
        import wandb

        kind = wandb.Video if file.suffix == ".mp4" else wandb.Image
        self._run.log({name: kind(str(file))}, step=step)

    def close(self, failed: bool = False) -> None:
        """Ends the W&B run, as crashed when the run failed."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=int(failed))

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self._id, "alerts": self._alerts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._alerts.load_state_dict(state["alerts"])
        if state["run_id"] and state["run_id"] != self._id:
            self._id = state["run_id"]
            if self._run is not None:
                self.close()
                self.open()

    def _keep_id(self, known: str) -> str:
        """The id from the checkpoint, else the folder's, else a new one; the folder keeps it."""
        path = self._folder / "wandb" / "run_id"
        if not known and path.exists():
            known = path.read_text().strip()
        run_id = known or secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Atomic, because a kill in the middle of a write would leave half an id, which names another run.
        half = path.with_suffix(".tmp")
        half.write_text(run_id + "\n")
        half.replace(path)
        return run_id
