"""An episode as a row of a Parquet table, and back: every field, bit for bit."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.types import Episode, Source, Task
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.images import ImageFormat, decode_image, encode_image, is_image

if TYPE_CHECKING:
    import pyarrow as pa

OBSERVATION = "observation."
"""Prefix of the column of an observation."""

TEXTS = ("id", "task", "instruction", "source", "metadata")
SCALARS = (*TEXTS, "policy_version", "terminated", "truncated", "length")
ARRAYS = ("actions", "rewards", "success", "detected")
_KINDS = "bfiu"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One step of an observation: its shape and NumPy's name of its type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_image(self) -> bool:
        return is_image(self.shape, self.dtype)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """What all episodes of a store have in common: observations by key, and ``A``."""

    observations: Mapping[str, ArraySpec]
    action: int

    @classmethod
    def of(cls, episode: Episode) -> "Layout":
        """The layout of one episode. Raises :class:`EpisodeError` where the episode is not whole in itself."""
        _check_arrays(episode)
        observations = {
            key: ArraySpec(values.shape[1:], values.dtype.name) for key, values in sorted(episode.observations.items())
        }
        return cls(observations, episode.actions.shape[1])

    def check(self, episode: Episode) -> None:
        """Raises :class:`EpisodeError` where an episode is not whole in itself, or of another layout."""
        if (found := Layout.of(episode)) != self:
            raise EpisodeError(
                f"episode {episode.id!r}: it has {found}, and the store {self}; episodes of another robot or camera "
                "need a store of their own"
            )

    def __str__(self) -> str:
        parts = [f"{key} {spec.dtype}{list(spec.shape)}" for key, spec in self.observations.items()]
        return ", ".join([*parts, f"action [{self.action}]"])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        observations = {k: {"shape": list(s.shape), "dtype": s.dtype} for k, s in self.observations.items()}
        return {"observations": observations, "action": self.action}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Layout":
        specs = {k: ArraySpec(tuple(s["shape"]), s["dtype"]) for k, s in plain["observations"].items()}
        return cls(specs, plain["action"])


def to_table(episodes: Sequence[Episode], layout: Layout, format: ImageFormat) -> "pa.Table":
    """One row an episode. Arrays are lists of steps; a step of several dimensions is flat.

    Raises :class:`EpisodeError` for metadata that JSON would change.
    """
    import pyarrow as pa

    columns: dict[str, pa.Array] = {
        "id": pa.array([e.id for e in episodes], pa.string()),
        "task": pa.array([e.task.name for e in episodes], pa.string()),
        "instruction": pa.array([e.task.instruction for e in episodes], pa.string()),
        "source": pa.array([str(e.source) for e in episodes], pa.string()),
        "policy_version": pa.array([e.policy_version for e in episodes], pa.int64()),
        "terminated": pa.array([e.terminated for e in episodes], pa.bool_()),
        "truncated": pa.array([e.truncated for e in episodes], pa.bool_()),
        "length": pa.array([len(e) for e in episodes], pa.int32()),
        "metadata": pa.array([metadata_text(e) for e in episodes], pa.string()),
        "actions": _lists([e.actions for e in episodes]),
        "rewards": _lists([e.rewards for e in episodes]),
        "success": _lists([e.success for e in episodes]),
        "detected": _lists([e.detected for e in episodes]),
    }
    for key, spec in layout.observations.items():
        values = [e.observations[key] for e in episodes]
        columns[OBSERVATION + key] = _images(values, format) if spec.is_image else _lists(values)
    schema = pa.schema([(name, array.type) for name, array in columns.items()])
    images = [OBSERVATION + key for key, spec in layout.observations.items() if spec.is_image]
    return pa.Table.from_arrays(list(columns.values()), schema=_as_dataset(schema, images))


def from_batch(batch: "pa.RecordBatch", layout: Layout, keys: Sequence[str], where: str) -> list[Episode]:
    """The episodes of some rows, with the observations ``keys``. Raises :class:`EpisodeError` naming ``where``."""
    rows = {name: batch.column(name).to_pylist() for name in SCALARS}
    episodes = []
    for i in range(batch.num_rows):
        steps = rows["length"][i]
        arrays = {name: _array(batch.column(name)[i], np.float32, (steps,)) for name in ("rewards", "detected")}
        observations: dict[str, NDArray[Any]] = {}
        for key in keys:
            cell, spec = batch.column(OBSERVATION + key)[i], layout.observations[key]
            if spec.is_image:
                pictures = [decode_image(picture["bytes"], spec.shape, where) for picture in cell.as_py()]
                observations[key] = np.stack(pictures)
            else:
                observations[key] = _array(cell, np.dtype(spec.dtype), (steps + 1, *spec.shape))
        episodes.append(
            Episode(
                id=rows["id"][i],
                task=Task(rows["task"][i], rows["instruction"][i]),
                observations=observations,
                actions=_array(batch.column("actions")[i], np.float32, (steps, layout.action)),
                success=_array(batch.column("success")[i], np.bool_, (steps,)),
                terminated=rows["terminated"][i],
                truncated=rows["truncated"][i],
                source=Source(rows["source"][i]),
                policy_version=rows["policy_version"][i],
                metadata=json.loads(rows["metadata"][i]),
                **arrays,
            )
        )
    return episodes


def _check_arrays(episode: Episode) -> None:
    where, steps = f"episode {episode.id!r}", len(episode)
    wanted: dict[str, tuple[Any, int]] = {
        "actions": (np.float32, 2), "rewards": (np.float32, 1), "success": (np.bool_, 1), "detected": (np.float32, 1)
    }  # fmt: skip
    for name, (dtype, dimensions) in wanted.items():
        values: NDArray[Any] = getattr(episode, name)
        if values.dtype != dtype or values.ndim != dimensions or len(values) != steps:
            raise EpisodeError(
                f"{where}: {name} is {values.dtype} {list(values.shape)}; it needs {np.dtype(dtype)} in {dimensions} "
                f"dimension{'s' * (dimensions > 1)}, {steps} steps"
            )
    for key, values in episode.observations.items():
        if values.dtype.kind not in _KINDS or values.dtype.itemsize > 8 or not values.dtype.isnative:
            raise EpisodeError(f"{where}: observation {key!r} is of type {values.dtype}, which cannot be kept")
        if values.ndim < 1 or len(values) != steps + 1:
            raise EpisodeError(
                f"{where}: observation {key!r} has shape {list(values.shape)}; {steps} actions need {steps + 1} of it"
            )


def metadata_text(episode: Episode) -> str:
    """The metadata as JSON. Raises :class:`EpisodeError` where it would not come back as it was."""
    plain = dict(episode.metadata)
    try:
        text = json.dumps(plain, ensure_ascii=False)
    except (TypeError, ValueError):
        text = ""
    for key, value in plain.items():
        if not (text and isinstance(key, str) and _same(value, json.loads(text)[key])):
            raise EpisodeError(
                f"episode {episode.id!r}: metadata {key!r} is {type(value).__name__} {value!r:.60}; use numbers, "
                "strings, true, false, null, and lists and string-keyed dictionaries of them"
            )
    return text


def _same(value: Any, back: Any) -> bool:
    """Equal in type and value; NaN is equal to itself, and -0.0 is not 0.0."""
    if type(value) is not type(back):
        return False
    if isinstance(value, dict):
        return list(value) == list(back) and all(_same(value[k], back[k]) for k in value)
    if isinstance(value, list):
        return len(value) == len(back) and all(map(_same, value, back))
    return repr(value) == repr(back) if isinstance(value, float) else bool(value == back)


def _lists(values: Sequence[NDArray[Any]]) -> "pa.Array":
    """[N] arrays [T, ...] as N lists of T numbers, or of T lists."""
    import pyarrow as pa

    flat = pa.array(np.concatenate([v.reshape(-1) for v in values]), pa.from_numpy_dtype(values[0].dtype))
    if values[0].ndim > 1:
        width = math.prod(values[0].shape[1:])
        steps = sum(len(v) for v in values)
        flat = pa.ListArray.from_arrays(np.arange(steps + 1, dtype=np.int32) * width, flat)
    return pa.ListArray.from_arrays(_offsets(values), flat)


def _images(values: Sequence[NDArray[np.uint8]], format: ImageFormat) -> "pa.Array":
    import pyarrow as pa

    files = pa.array([encode_image(pixels, format) for v in values for pixels in v], pa.binary())
    # The struct of the datasets library's Image feature; a path of null says that the bytes are all there is.
    pictures = pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], ["bytes", "path"])
    return pa.ListArray.from_arrays(_offsets(values), pictures)


def _offsets(values: Sequence[NDArray[Any]]) -> NDArray[np.int32]:
    return np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)


def _array(cell: "pa.ListScalar", dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    values = cell.values
    if len(shape) > 1:
        values = values.flatten()
    # A copy: what Arrow lends is read-only and keeps the whole shard in memory.
    return np.array(values.to_numpy(zero_copy_only=False), dtype).reshape(shape)


def _as_dataset(schema: "pa.Schema", images: Sequence[str]) -> "pa.Schema":
    """With the mark by which the datasets library, and the hub's viewer, know that ``images`` are pictures."""
    if not images:
        return schema
    from datasets import Features, Image, List

    features = Features.from_arrow_schema(schema)
    for name in images:
        features[name] = List(Image())
    return schema.with_metadata(features.arrow_schema.metadata)
