"""Episodes in from a LeRobotDataset; the layout is in :mod:`rollouts.episodes.lerobot_layout`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import IMAGE, Episode, Source, Task
from rollouts.episodes.files import EpisodeError, read_json
from rollouts.episodes.images import decode_image
from rollouts.episodes.lerobot_layout import (
    ACTION,
    CAMERA,
    DONE,
    INFO,
    LAST,
    OWN,
    REWARD,
    STATE,
    STATS,
    SUCCESS,
    TASKS,
    TRUNCATED,
    VERSION,
)
from rollouts.episodes.video import VideoReader

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LeRobotDefaults:
    """What to make of a dataset that others have written.

    ``source`` is who acted. ``camera`` is the one that becomes "image" (``front`` for ``observation.images.front``); a
    dataset with one camera needs no choice, and further cameras keep their names. ``assume_success`` takes every
    episode of a dataset that does not tell for a successful one, done after its last action. ``rescale`` brings actions
    into [-1, 1] by the least and greatest value of each dimension in ``meta/stats.json``.
    """

    source: Source = Source.PRIOR
    camera: str | None = None
    assume_success: bool = False
    rescale: bool = False


def import_lerobot(folder: Path | str, defaults: LeRobotDefaults | None = None) -> Iterator[Episode]:
    """The episodes of a LeRobotDataset v3.0, one data file in memory at a time.

    What :func:`rollouts.episodes.lerobot_export.export_lerobot` wrote comes back as it was, but for what a video loses.
    In other datasets much is missing, and then

    - the observation after the last action is the one before it, again;
    - ``rewards`` are NaN where there is no ``next.reward``;
    - ``success`` is false where there is no ``next.success``, but for ``assume_success``;
    - an episode is ``terminated`` when its last step succeeded, ``truncated`` otherwise: ``next.done`` alone does not
      say which of the two it was, and a value that is not cut off is the lesser mistake. ``next.truncated`` is heard;
    - ``detected`` is NaN; the task's name is its words; the id is the folder's name and the episode's number.

    Raises :class:`EpisodeError` at once where there is no such dataset, and later where a file is damaged, or actions
    lie outside [-1, 1] (``rescale``).
    """
    path = Path(folder)
    file = path / INFO
    if not file.is_file():
        raise EpisodeError(f"{path}: no LeRobotDataset there (no {INFO})")
    info = read_json(file)
    if info.get("codebase_version") != VERSION:
        raise EpisodeError(
            f"{path}: LeRobotDataset {info.get('codebase_version')}; {VERSION} is read: convert it with "
            "'python -m lerobot.scripts.convert_dataset_v21_to_v30'"
        )
    for name in ("features", "fps", "data_path"):
        if name not in info:
            raise EpisodeError(f"{file}: no {name!r}; it is damaged")
    if ACTION not in info["features"]:
        raise EpisodeError(f"{path}: its frames have no {ACTION!r}")
    return _Import(path, info, defaults or LeRobotDefaults()).episodes()


class _Import:
    def __init__(self, path: Path, info: Mapping[str, Any], defaults: LeRobotDefaults) -> None:
        self._path, self._info, self._defaults = path, info, defaults
        self._features: Mapping[str, Mapping[str, Any]] = info["features"]
        self._rows = self._read_rows()
        own = any(f"{OWN}id" in row for row in self._rows)
        self._keys = _observation_keys(self._features, defaults.camera, own, path)
        self._videos: dict[str, tuple[Path, VideoReader]] = {}
        self._tasks = self._read_tasks()
        self._bounds = self._read_bounds() if defaults.rescale else None

    def episodes(self) -> Iterator[Episode]:
        for place, here in groupby(self._rows, key=lambda row: (row["data/chunk_index"], row["data/file_index"])):
            file = self._path / self._info["data_path"].format(chunk_index=place[0], file_index=place[1])
            table = _table(file)
            numbers = table.column("episode_index").to_numpy()
            for row in here:
                frames = np.flatnonzero(numbers == row["episode_index"])
                if not len(frames) or len(frames) != row["length"]:
                    raise EpisodeError(f"{file}: {len(frames)} frames of episode {row['episode_index']}, which has "
                                       f"{row['length']}; the file is not whole")  # fmt: skip
                yield self._episode(row, table.slice(int(frames[0]), len(frames)), file)

    def _episode(self, row: Row, frames: "pa.Table", file: Path) -> Episode:
        steps = frames.num_rows
        columns = set(frames.column_names)
        observations = {key: self._observation(name, row, frames, file) for name, key in self._keys.items()}
        success = _numbers(frames, SUCCESS).astype(np.bool_) if SUCCESS in columns else np.zeros(steps, np.bool_)
        if SUCCESS not in columns and self._defaults.assume_success:
            success[-1] = True
        terminated, truncated = self._end(row, frames, bool(success[-1]))
        words = self._tasks.get(int(_numbers(frames, "task_index")[0]), "") if "task_index" in columns else ""
        number = row["episode_index"]
        missing = np.full(steps, np.nan, np.float32)
        return Episode(
            id=row.get(f"{OWN}id", f"{self._path.name}/{number}"),
            task=Task(row.get(f"{OWN}task", words), words),
            observations=observations,
            actions=self._actions(frames, number),
            rewards=_numbers(frames, REWARD).astype(np.float32) if REWARD in columns else missing,
            success=success,
            detected=np.array(row.get(f"{OWN}detected", missing), np.float32),
            terminated=terminated,
            truncated=truncated,
            source=Source(row.get(f"{OWN}source", self._defaults.source)),
            policy_version=row.get(f"{OWN}policy_version", 0),
            metadata=json.loads(row.get(f"{OWN}metadata", "{}")),
        )

    def _end(self, row: Row, frames: "pa.Table", succeeded: bool) -> tuple[bool, bool]:
        if f"{OWN}terminated" in row:
            return row[f"{OWN}terminated"], row[f"{OWN}truncated"]
        if TRUNCATED in frames.column_names and _numbers(frames, TRUNCATED)[-1]:
            return False, True
        if TRUNCATED in frames.column_names and DONE in frames.column_names and _numbers(frames, DONE)[-1]:
            return True, False
        return succeeded, not succeeded

    def _observation(self, name: str, row: Row, frames: "pa.Table", file: Path) -> NDArray[Any]:
        """[T+1, ...]."""
        entry = self._features[name]
        last = row.get(LAST + name)
        if entry["dtype"] == "video":
            values: NDArray[Any] = self._video(name, row)
        elif entry["dtype"] == "image":
            pictures = [picture["bytes"] for picture in frames.column(name).to_pylist()]
            if any(picture is None for picture in pictures):
                raise EpisodeError(f"{file}: pictures of {name} are not embedded; export the dataset with its pictures")
            values = np.stack([decode_image(picture, _height_width(entry), str(file)) for picture in pictures])
        else:
            values = _numbers(frames, name).astype(entry["dtype"]).reshape(len(frames), -1)
        if last is None:
            final = values[-1:]
        elif name.startswith(CAMERA):
            final = decode_image(last, values.shape[1:], str(file))[None]
        else:
            final = np.array([last], values.dtype)
        return np.concatenate([values, final])

    def _video(self, name: str, row: Row) -> NDArray[np.uint8]:
        place = {key: row[f"videos/{name}/{key}"] for key in ("chunk_index", "file_index")}
        path = self._path / self._info["video_path"].format(video_key=name, **place)
        if name not in self._videos or self._videos[name][0] != path:
            self._videos[name] = path, VideoReader(path)
        start = round(row[f"videos/{name}/from_timestamp"] * self._info["fps"])
        return self._videos[name][1].read(start, row["length"])

    def _actions(self, frames: "pa.Table", number: int) -> NDArray[np.float32]:
        values = _numbers(frames, ACTION).reshape(len(frames), -1)
        if self._bounds is not None:
            low, high = self._bounds
            # A dimension that never moves has its one value in the middle.
            values = np.clip(2 * (values - low) / np.where(high > low, high - low, np.inf) - (high > low), -1, 1)
        actions = values.astype(np.float32)
        if not (np.abs(actions) <= 1).all():
            raise EpisodeError(
                f"{self._path}: actions of episode {number} lie outside [-1, 1]; rescale them by the dataset's bounds "
                "(rescale)"
            )
        return actions

    def _read_rows(self) -> list[Row]:
        rows: list[Row] = []
        for file in sorted((self._path / "meta" / "episodes").glob("*/*.parquet")):
            table = _table(file)
            rows += table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()
        if len(rows) != self._info.get("total_episodes", len(rows)):
            raise EpisodeError(f"{self._path}: {len(rows)} episodes in meta/episodes, and {INFO} counts "
                               f"{self._info['total_episodes']}; files are missing")  # fmt: skip
        return rows

    def _read_tasks(self) -> dict[int, str]:
        table = _table(self._path / TASKS)
        # The words are the index of a pandas table, whose column has no fixed name.
        words = next(
            (n for n in table.column_names if str(table.schema.field(n).type) in ("string", "large_string")), ""
        )
        if not words or "task_index" not in table.column_names:
            raise EpisodeError(f"{self._path / TASKS}: no tasks with words and 'task_index' in it")
        return dict(zip(table.column("task_index").to_pylist(), table.column(words).to_pylist(), strict=True))

    def _read_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        try:
            stats = read_json(self._path / STATS)[ACTION]
            return np.array(stats["min"], np.float64), np.array(stats["max"], np.float64)
        except KeyError as error:
            raise EpisodeError(f"{self._path / STATS}: no bounds of {ACTION!r} to rescale by") from error


def _observation_keys(
    features: Mapping[str, Mapping[str, Any]], camera: str | None, own: bool, path: Path
) -> dict[str, str]:
    """From a feature's name to the key of the observation, which ours (``own``) have in the name."""
    cameras = [name for name, entry in features.items() if entry["dtype"] in ("image", "video")]
    vectors = [
        name
        for name, entry in features.items()
        if name.startswith(STATE) and name not in cameras and len(entry["shape"]) == 1 and entry["dtype"] != "string"
    ]
    chosen = None if own or not cameras else cameras[0]
    if camera is not None or (not own and len(cameras) > 1):
        wanted = IMAGE if camera is None else camera
        chosen = next((name for name in cameras if _short(name) == wanted), None)
        if chosen is None:
            has = ", ".join(map(_short, cameras)) or "none"
            raise EpisodeError(f"{path}: name the camera that becomes 'image': it has {has}")
    return {name: IMAGE if name == chosen else _short(name) for name in (*vectors, *cameras)}


def _short(name: str) -> str:
    return name.removeprefix(CAMERA).removeprefix(STATE)


def _height_width(entry: Mapping[str, Any]) -> Sequence[int]:
    """[H, W, 3], whatever the order of the axes in the feature's shape."""
    names, shape = entry.get("names") or [], list(entry["shape"])
    channels_first = names[:1] in (["channels"], ["channel"])
    return [*shape[1:], shape[0]] if channels_first else shape


def _numbers(frames: "pa.Table", name: str) -> NDArray[Any]:
    column = frames.column(name).combine_chunks()
    while hasattr(column, "flatten") and str(column.type).startswith(("list", "fixed_size_list", "large_list")):
        column = column.flatten()
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def _table(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise EpisodeError(f"{path}: missing, and the dataset counts on it; put it back") from error
    except (OSError, pa.ArrowException) as error:
        raise EpisodeError(f"{path}: not a Parquet file that can be read; it is damaged") from error
