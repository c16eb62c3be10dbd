"""Prior data of any format that is read here, by what lies in the folder."""

from collections.abc import Iterator
from pathlib import Path

from rollouts.envs.types import Episode
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.store import INFO, read_episodes


def open_episodes(path: str | Path) -> Iterator[Episode]:
    """The episodes in ``path``: our own store, a LeRobotDataset (v3), or a Minari data set.

    Raises :class:`rollouts.episodes.files.EpisodeError` where it is none of them.
    """
    folder = Path(path)
    if (folder / INFO).is_file():
        return read_episodes(folder)
    if (folder / "meta" / "info.json").is_file():
        from rollouts.episodes.lerobot_import import import_lerobot

        return import_lerobot(folder)
    if (folder / "data" / "metadata.json").is_file():
        from rollouts.envs.minari import import_minari

        return import_minari(folder)
    raise EpisodeError(f"{path}: no episodes there: give a store of ours, a LeRobotDataset or a Minari data set")
