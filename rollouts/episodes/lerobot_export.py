"""Episodes out as a LeRobotDataset; the layout is in :mod:`rollouts.episodes.lerobot_layout`."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import Episode
from rollouts.episodes.codec import Layout, metadata_text
from rollouts.episodes.files import EpisodeError, new_folder, write_json
from rollouts.episodes.images import encode_image
from rollouts.episodes.lerobot_layout import (
    ACTION,
    CAMERA,
    CHUNK_FILES,
    DATA,
    DATA_MB,
    DONE,
    EPISODES,
    FRAME,
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
    VIDEO,
    VIDEO_MB,
    feature,
    hf_features,
    histogram,
    image_statistics,
    statistics,
)
from rollouts.episodes.video import CODEC, GROUP, PIXELS, QUALITY, VideoWriter

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def export_lerobot(
    folder: Path | str,
    episodes: Iterable[Episode],
    *,
    fps: int = 10,
    robot_type: str | None = None,
    video: bool = False,
) -> Path:
    """Writes ``episodes`` as a LeRobotDataset v3.0 to ``folder``, which must be new; it appears when it is whole.

    A frame is an observation, the action that followed, and what came of it (``next.reward``, ``next.success``,
    ``next.done``: terminated or truncated, ``next.truncated``). The layout has no frame for the observation after the
    last action, no names for tasks beside their words, and one flag for two kinds of ends: these, and the id, source,
    version, metadata and detections of an episode, go into columns ``polestar/…`` of the episodes table, from which
    :func:`rollouts.episodes.lerobot_import.import_lerobot` has the same episodes back, bit for bit. Observation KEY
    becomes ``observation.KEY``, and a picture ``observation.images.KEY``: embedded as PNG, or with ``video`` as H.264,
    which loses detail. ``fps`` is how many decisions the robot makes in a second.

    lerobot does not install beside this project's torch. Tests check files against the schemas of its source; by hand,
    lerobot 0.4.4 in an environment of its own has read such data sets, frames and values the same (H.264 but for its
    loss), and what its ``LeRobotDataset.create`` wrote came in here bit for bit.

    Raises :class:`EpisodeError` where the folder exists, or episodes are empty, of different layouts, or of kinds that
    the layout has no place for.
    """
    target = Path(folder)
    if fps < 1:
        raise EpisodeError(f"fps must be at least 1, got {fps}")
    with new_folder(target) as scratch:
        with ExitStack() as stack:
            export = _Export(scratch, stack, fps, video)
            for episode in episodes:
                export.add(episode)
        export.finish(robot_type)
    return target


class _Export:
    """What is known so far of a dataset that is being written."""

    def __init__(self, folder: Path, stack: ExitStack, fps: int, video: bool) -> None:
        self._folder, self._stack, self._fps, self._video = folder, stack, fps, video
        self._layout: Layout | None = None
        self._features: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._vectors: dict[str, list[NDArray[Any]]] = {}
        self._histograms: dict[str, NDArray[np.int64]] = {}
        self._frames = 0
        self._file, self._table, self._bytes = -1, ExitStack(), 0
        self._writer: pq.ParquetWriter | None = None
        self._cameras: dict[str, _Camera] = {}

    def add(self, episode: Episode) -> None:
        if self._layout is None:
            self._layout = Layout.of(episode)
            self._features = _features(self._layout, self._video)
        self._layout.check(episode)
        if not len(episode):
            raise EpisodeError(
                f"episode {episode.id!r} has no step, and a LeRobotDataset no place for it; leave it out"
            )
        columns = self._columns(episode)
        row = self._row(episode)
        for key, entry in self._features.items():
            if entry["dtype"] == "video":
                if key not in self._cameras:
                    height, width, _ = entry["shape"]
                    self._cameras[key] = _Camera(self._folder, self._stack, key, height, width, self._fps)
                row |= self._cameras[key].add(columns[key])
        row |= self._write(columns)
        for key, stats in self._statistics(columns, len(episode)).items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in stats.items()}
        self._rows.append(row)
        self._frames += len(episode)

    def finish(self, robot_type: str | None) -> None:
        """Everything in ``meta``, once all episodes are in."""
        if not self._rows:
            raise EpisodeError("no episodes to export")
        import pandas
        import pyarrow as pa
        import pyarrow.parquet as pq

        for key, camera in self._cameras.items():
            self._features[key]["info"] = camera.info()
        meta = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        episodes = self._folder / EPISODES.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row | meta for row in self._rows]), episodes, compression="snappy")
        index = pandas.Index(list(self._tasks), name="task")
        tasks = pandas.DataFrame({"task_index": list(self._tasks.values())}, index=index)
        tasks.to_parquet(self._folder / TASKS)
        write_json(self._folder / STATS, self._all_statistics())
        count = len(self._rows)
        info = {
            "codebase_version": VERSION,
            "fps": self._fps,
            "features": self._features,
            "total_episodes": count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "data_path": DATA,
            "video_path": VIDEO if self._cameras else None,
            "robot_type": robot_type,
            "splits": {"train": f"0:{count}"},
        }
        write_json(self._folder / INFO, info)

    def _columns(self, episode: Episode) -> dict[str, NDArray[Any]]:
        """Each feature of each frame, [T, ...]."""
        steps = len(episode)
        ends = np.arange(steps) == steps - 1
        task = self._tasks.setdefault(episode.task.instruction, len(self._tasks))
        numbers = np.arange(steps)
        return {
            **{_feature_key(key, v): v[:-1] for key, v in episode.observations.items()},
            ACTION: episode.actions,
            REWARD: episode.rewards,
            DONE: ends & (episode.terminated or episode.truncated),
            TRUNCATED: ends & episode.truncated,
            SUCCESS: episode.success,
            "timestamp": (numbers / self._fps).astype(np.float32),
            "frame_index": numbers,
            "episode_index": np.full(steps, len(self._rows)),
            "index": self._frames + numbers,
            "task_index": np.full(steps, task),
        }

    def _row(self, episode: Episode) -> dict[str, Any]:
        """What the episodes table says of an episode, but for its files and statistics."""
        last: dict[str, Any] = {}
        for key, values in episode.observations.items():
            name = _feature_key(key, values)
            picture = name.startswith(CAMERA)
            last[LAST + name] = encode_image(values[-1], "png") if picture else values[-1].tolist()
        own = {
            "id": episode.id,
            "task": episode.task.name,
            "source": str(episode.source),
            "policy_version": episode.policy_version,
            "terminated": episode.terminated,
            "truncated": episode.truncated,
            "metadata": metadata_text(episode),
            # float32 in a list of float64: exact, but for the payload of a NaN.
            "detected": episode.detected.tolist(),
        }
        return {
            "episode_index": len(self._rows),
            "tasks": [episode.task.instruction],
            "length": len(episode),
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + len(episode),
            **{OWN + key: value for key, value in own.items()},
            **last,
        }

    def _write(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """One row group of a data file; a file is closed when it has its size."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = hf_features(self._features)
        arrays = [_arrow(columns[key], type.type) for key, type in zip(types, types.arrow_schema, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=types.arrow_schema)
        if self._writer is None or self._bytes + table.nbytes > DATA_MB * 2**20:
            self._table.close()
            self._file, self._bytes = self._file + 1, 0
            path = self._folder / DATA.format(**_place(self._file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._table.enter_context(pq.ParquetWriter(path, table.schema, compression="snappy"))
            self._stack.callback(self._table.close)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        return {f"data/{key}": value for key, value in _place(self._file).items()}

    def _statistics(self, columns: Mapping[str, NDArray[Any]], steps: int) -> dict[str, dict[str, NDArray[Any]]]:
        made = {}
        for key, values in columns.items():
            if self._features[key]["dtype"] in ("image", "video"):
                counts = histogram(values)
                self._histograms[key] = self._histograms.get(key, np.zeros_like(counts)) + counts
                made[key] = image_statistics(counts, steps)
            else:
                self._vectors.setdefault(key, []).append(values)
                made[key] = statistics(values)
        return made

    def _all_statistics(self) -> dict[str, dict[str, Any]]:
        made = {key: statistics(np.concatenate(values)) for key, values in self._vectors.items()}
        made |= {key: image_statistics(counts, self._frames) for key, counts in self._histograms.items()}
        return {key: {name: value.tolist() for name, value in stats.items()} for key, stats in made.items()}


class _Camera:
    """The video files of one camera."""

    def __init__(self, folder: Path, stack: ExitStack, key: str, height: int, width: int, fps: int) -> None:
        self._folder, self._stack, self._key, self._size, self._fps = folder, stack, key, (height, width), fps
        self._file, self._frames = -1, 0
        self._open = ExitStack()
        self._writer: VideoWriter | None = None

    def add(self, frames: NDArray[np.uint8]) -> dict[str, Any]:
        """Where these frames are."""
        # ffmpeg writes when it likes: a file's size is known roughly, and not at all before it has begun.
        if self._writer is None or (self._path().is_file() and self._path().stat().st_size > VIDEO_MB * 2**20):
            self._open.close()
            self._file, self._frames = self._file + 1, 0
            self._writer = self._open.enter_context(VideoWriter(self._path(), *self._size, self._fps))
            self._stack.callback(self._open.close)
        self._writer.write(frames)
        start, self._frames = self._frames, self._frames + len(frames)
        times = {"from_timestamp": start / self._fps, "to_timestamp": self._frames / self._fps}
        return {f"videos/{self._key}/{key}": value for key, value in (_place(self._file) | times).items()}

    def info(self) -> dict[str, Any]:
        return {
            "video.height": self._size[0],
            "video.width": self._size[1],
            "video.codec": CODEC,
            "video.pix_fmt": PIXELS,
            "video.fps": self._fps,
            "video.channels": 3,
            "video.g": GROUP,
            "video.crf": QUALITY,
            "has_audio": False,
            "is_depth_map": False,
        }

    def _path(self) -> Path:
        return self._folder / VIDEO.format(video_key=self._key, **_place(self._file))


def _place(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}


def _features(layout: Layout, video: bool) -> dict[str, dict[str, Any]]:
    features = {}
    for key, spec in layout.observations.items():
        if spec.is_image:
            features[CAMERA + key] = feature("video" if video else "image", spec.shape)
        elif len(spec.shape) == 1 and spec.size:
            features[STATE + key] = feature(spec.dtype, spec.shape)
        else:
            raise EpisodeError(f"observation {key!r} of shape {list(spec.shape)}: a LeRobotDataset holds vectors and "
                               "pictures; leave it out")  # fmt: skip
    if not layout.action:
        raise EpisodeError("actions of no dimension: a LeRobotDataset has no place for them")
    features[ACTION] = feature("float32", (layout.action,))
    features[REWARD] = feature("float32", (1,))
    features |= {key: feature("bool", (1,)) for key in (DONE, TRUNCATED, SUCCESS)}
    return features | {key: feature(dtype, (1,)) for key, dtype in FRAME.items()}


def _feature_key(key: str, values: NDArray[Any]) -> str:
    return (CAMERA if values.dtype == np.uint8 and values.ndim == 4 else STATE) + key


def _arrow(values: NDArray[Any], type: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(type):
        files = pa.array([encode_image(pixels, "png") for pixels in values], pa.binary())
        return pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], ["bytes", "path"])
    if pa.types.is_fixed_size_list(type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), type.value_type), type=type)
    return pa.array(values.reshape(-1), type)
