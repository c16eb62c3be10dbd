"""Episodes of any format that is read here, by what lies in the folder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rollouts.envs.types import Episode, Source, Task
from rollouts.episodes.files import EpisodeError, read_json
from rollouts.episodes.store import INFO, read_episodes, read_info

EpisodeFormat = Literal["polestar", "lerobot", "minari"]
LEROBOT_INFO, MINARI_INFO = Path("meta", "info.json"), Path("data", "metadata.json")


@dataclass(frozen=True, slots=True)
class Reading:
    """What to make of a dataset that others have written, where the format leaves it open; None and false leave it to
    :func:`rollouts.episodes.lerobot_import.import_lerobot` and :func:`rollouts.envs.minari.import_minari`.

    ``source`` is for both, ``task`` and ``success_key`` for Minari, the others for LeRobotDatasets.
    """

    source: Source | None = None
    task: Task | None = None
    success_key: str | None = None
    camera: str | None = None
    assume_success: bool = False
    rescale: bool = False

    def check(self, path: Path | str, format: EpisodeFormat) -> None:
        """Raises :class:`EpisodeError` for a setting that says nothing about this format."""
        heard = {
            "polestar": set[str](),
            "lerobot": {"source", "camera", "assume_success", "rescale"},
            "minari": {"source", "task", "success_key"},
        }[format]
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if deaf := [name for name in given if name not in heard]:
            names = ", ".join(deaf)
            raise EpisodeError(f"{path}: leave out {names}, which says nothing about episodes in the format '{format}'")


def episode_format(path: Path | str) -> EpisodeFormat:
    """The format of the episodes in ``path``. Raises :class:`EpisodeError` where there are none."""
    folder = Path(path)
    if (folder / INFO).is_file():
        return "polestar"
    if (folder / LEROBOT_INFO).is_file():
        return "lerobot"
    if (folder / MINARI_INFO).is_file():
        return "minari"
    what = "no episodes there" if folder.exists() else "there is no such folder"
    raise EpisodeError(f"{path}: {what}: give a store of ours, a LeRobotDataset or a Minari data set")


def open_episodes(path: Path | str, reading: Reading | None = None) -> Iterator[Episode]:
    """The episodes in ``path``: our own store, a LeRobotDataset (v3), or a Minari data set.

    Raises :class:`EpisodeError` where it is none of them, or ``reading`` does not fit it.
    """
    format, how = episode_format(path), reading or Reading()
    how.check(path, format)
    source = how.source or Source.PRIOR
    match format:
        case "polestar":
            return read_episodes(path)
        case "lerobot":
            from rollouts.episodes.lerobot_import import LeRobotDefaults, import_lerobot

            return import_lerobot(path, LeRobotDefaults(source, how.camera, how.assume_success, how.rescale))
        case "minari":
            from rollouts.envs.minari import SUCCESS, import_minari

            return import_minari(path, source=source, task=how.task, success_key=how.success_key or SUCCESS)


def episode_rate(path: Path | str) -> float | None:
    """Decisions a second of the episodes in ``path``, where the folder tells. Raises :class:`EpisodeError`."""
    match episode_format(path):
        case "polestar":
            return read_info(path).rate
        case "lerobot":
            info = Path(path) / LEROBOT_INFO
            fps = read_json(info).get("fps")
            if not isinstance(fps, int | float) or not 0 < fps < math.inf:
                raise EpisodeError(
                    f"{info}: fps is {fps!r} where frames a second should be: put a number above 0 there"
                )
            return float(fps)
        case "minari":
            return None
