"""Folders of episodes from one format into another, whole or not at all."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from rollouts.envs.prior import Reading, episode_format, episode_rate, open_episodes
from rollouts.envs.types import Episode
from rollouts.episodes.files import EpisodeError, new_folder
from rollouts.episodes.statistics import DataCard, card, describe
from rollouts.episodes.store import write_episodes

ExportFormat = Literal["minari", "lerobot"]


def describe_any(path: Path | str, reading: Reading | None = None) -> DataCard:
    """What a folder of any format holds; other formats than ours are read as a whole. Raises :class:`EpisodeError`."""
    episodes = open_episodes(path, reading)
    return describe(path) if episode_format(path) == "polestar" else card(path, episodes)


def import_episodes(path: Path | str, out: Path | str, reading: Reading | None = None) -> Path:
    """Reads a LeRobotDataset or a Minari data set into the new store ``out``, and returns that.

    Raises :class:`EpisodeError` where ``out`` exists, ``path`` is no such data set, or one of its episodes does not
    fit; there is no ``out`` then.
    """
    if episode_format(path) == "polestar":
        raise EpisodeError(f"{path}: is a store of ours already; copy the folder")
    target = Path(out)
    with new_folder(target) as scratch:
        write_episodes(scratch, _some(path, open_episodes(path, reading)), rate=episode_rate(path))
    return target


def export_episodes(
    path: Path | str,
    out: Path | str,
    to: ExportFormat,
    *,
    fps: int | None = None,
    video: bool = False,
    reading: Reading | None = None,
) -> Path:
    """Writes the episodes in ``path``, of any format, to the new folder ``out`` in another one, and returns that.

    ``fps`` and ``video`` are those of :func:`rollouts.episodes.lerobot_export.export_lerobot`; without ``fps`` the rate
    is what ``path`` tells (:func:`rollouts.envs.prior.episode_rate`), rounded: LeRobot's are whole numbers.
    Of a Minari data set the name of ``out`` is the id (:func:`rollouts.envs.minari.dataset_place`).

    Raises :class:`EpisodeError` where ``out`` exists, ``path`` holds no episodes, they do not fit the format, or
    nothing tells the rate; there is no ``out`` then.
    """
    episodes = open_episodes(path, reading)
    if to == "minari":
        if fps is not None or video:
            raise EpisodeError(f"{out}: leave out fps and video, which a Minari data set has no place for")
        from rollouts.envs.minari import dataset_place, export_minari

        root, dataset_id = dataset_place(out)
        return export_minari(dataset_id, episodes, root=root)
    from rollouts.episodes.lerobot_export import export_lerobot

    if fps is None:
        rate = episode_rate(path)
        if rate is None:
            raise EpisodeError(f"{path}: does not tell how many decisions the robot makes in a second: give fps")
        fps = max(1, round(rate))
    return export_lerobot(out, episodes, fps=fps, video=video)


def _some(path: Path | str, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """The same; raises where there are none."""
    none = True
    for episode in episodes:
        none = False
        yield episode
    if none:
        raise EpisodeError(f"{path}: no episodes in it")
