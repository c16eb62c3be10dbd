"""The layout of a LeRobotDataset, version 3.0: names, features, schema and statistics.

    meta/info.json                               features with shapes and types, rate, counts, templates of paths
    meta/stats.json                              statistics of each feature over the dataset
    meta/tasks.parquet                           a pandas table: task_index by the words of the task
    meta/episodes/chunk-000/file-000.parquet     one row an episode: where its rows and frames are, its statistics
    data/chunk-000/file-000.parquet              one row a frame, many episodes a file, one row group each
    videos/KEY/chunk-000/file-000.mp4            frames of a camera, many episodes a file

Source: github.com/huggingface/lerobot at 7427f31 (23 August 2026), ``src/lerobot/datasets``: ``utils.py`` (paths,
``DatasetInfo``), ``feature_utils.py`` (the Arrow schema), ``dataset_writer.py`` and ``dataset_metadata.py`` (columns of
the episodes table), ``compute_stats.py`` (shapes of statistics), and ``utils/constants.py`` (names of features).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Features

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, EPISODES = f"data/{_FILE}.parquet", f"meta/episodes/{_FILE}.parquet"
VIDEO = f"videos/{{video_key}}/{_FILE}.mp4"
CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200

STATE, CAMERA = "observation.", "observation.images."
ACTION, REWARD, DONE, TRUNCATED, SUCCESS = "action", "next.reward", "next.done", "next.truncated", "next.success"
FRAME: dict[str, str] = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"
}  # fmt: skip
"""Features that every dataset has, and their types."""

OWN = "polestar/"
"""Columns of ours in the episodes table: what the layout has no place for. LeRobot carries them along unread."""
LAST = f"{OWN}last."

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def feature(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """An entry of ``features``; pictures and videos name their axes, so that readers know where the channels are."""
    names = ["height", "width", "channels"] if dtype in ("image", "video") else None
    return {"dtype": dtype, "shape": list(shape), "names": names}


def hf_features(features: Mapping[str, Mapping[str, Any]]) -> "Features":
    """The types of the columns of a data file, as ``datasets`` has them; frames of videos are no columns."""
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {}
    for key, entry in features.items():
        if entry["dtype"] == "image":
            columns[key] = Image()
        elif entry["dtype"] != "video":
            value = Value(entry["dtype"])
            # A single number is no list of one.
            columns[key] = value if tuple(entry["shape"]) == (1,) else List(value, length=entry["shape"][0])
    return Features(columns)


def statistics(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Of the rows of [N, D]: min, max, mean, std (of the population) and quantiles, each [D], and count [1]."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    quantiles = {name: np.quantile(rows, q, axis=0) for name, q in QUANTILES.items()}
    moments = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**moments, "count": np.array([len(rows)]), **quantiles}


def histogram(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel of [N, H, W, 3] has each of its values, [3, 256]: sums of these are those of all."""
    channels = [np.bincount(frames[..., c].reshape(-1), minlength=256) for c in range(3)]
    return np.stack(channels).astype(np.int64)


def image_statistics(counts: NDArray[np.int64], frames: int) -> dict[str, NDArray[Any]]:
    """The statistics of :func:`statistics` for each channel, [3, 1, 1], with pixels from 0 to 1; count is of frames."""
    values, total = np.arange(256) / 255, counts.sum(1, keepdims=True)
    mean = counts @ values / total[:, 0]
    std = np.sqrt(((values - mean[:, None]) ** 2 * counts).sum(1) / total[:, 0])
    cumulated = counts.cumsum(1) / total
    present = counts > 0
    made = {
        "min": values[present.argmax(1)],
        "max": values[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": std,
        **{name: values[(cumulated >= q).argmax(1)] for name, q in QUANTILES.items()},
    }
    return {"count": np.array([frames]), **{name: value.reshape(3, 1, 1) for name, value in made.items()}}
