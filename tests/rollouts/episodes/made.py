"""Episodes made up for tests, datasets as others write them, and whether two episodes are the same."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rollouts.envs.types import Episode, Source, Task
from rollouts.episodes.images import encode_image


def bits(value: Any) -> Any:
    """Equal exactly where two values are the same bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return type(value), repr(value)


def same(first: Episode, second: Episode) -> bool:
    for field in fields(Episode):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name == "observations":
            a, b = dict(sorted(a.items())), dict(sorted(b.items()))
        if bits(a) != bits(b):
            return False
    return True


def episode(
    id: str,
    steps: int = 3,
    *,
    task: str = "open",
    source: Source = Source.DEMONSTRATION,
    pixels: int = 0,
    seed: int = 0,
) -> Episode:
    rng = np.random.default_rng(seed)
    observations: dict[str, Any] = {"state": rng.normal(size=(steps + 1, 2)).astype(np.float32)}
    if pixels:
        observations["image"] = rng.integers(0, 256, (steps + 1, pixels, pixels, 3), np.uint8)
    success = np.arange(steps) == steps - 1
    return Episode(
        id,
        Task(task, f"{task} it"),
        observations,
        rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        np.where(success, 0, -1).astype(np.float32),
        success,
        np.full(steps, np.nan, np.float32),
        terminated=True,
        truncated=False,
        source=source,
        metadata={"seed": seed},
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OTHER_TYPES = ["int64", "uint64", "float64", "float16", "bool", "int8", "uint8"]


def floats(*shape: int) -> st.SearchStrategy[Any]:
    """Drawn as bits, since hypothesis knows but one NaN."""
    return hnp.arrays(np.uint32, shape).map(lambda bits: bits.view(np.float32))


@st.composite
def some_episodes(draw: st.DrawFn, tame: bool = False) -> list[Episode]:
    """Some episodes of one layout, as odd as they may be; NaN in every bit pattern.

    ``tame``: such as other formats have a place for. Everything has a size, and texts have no NUL.
    """
    least, text = int(tame), TEXT.map(lambda t: t.replace("\0", "")) if tame else TEXT
    action, state = draw(st.integers(least, 3)), draw(st.integers(least, 4))
    pixels = draw(st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)))
    other = draw(st.none() | st.tuples(st.sampled_from(OTHER_TYPES), hnp.array_shapes(min_dims=0, max_dims=2)))
    if tame:
        other = None
    episodes = []
    for number in range(draw(st.integers(1, 5))):
        steps = draw(st.integers(least, 4))
        observations = {"state": draw(floats(steps + 1, state))}
        if pixels is not None:
            observations["image"] = draw(hnp.arrays(np.uint8, (steps + 1, *pixels, 3)))
        if other is not None:
            observations["other"] = draw(hnp.arrays(other[0], (steps + 1, *other[1])))
        episodes.append(
            Episode(
                f"{number}{draw(text)}",
                Task(draw(text), draw(text)),
                observations,
                draw(floats(steps, action)),
                draw(floats(steps)),
                draw(hnp.arrays(np.bool_, steps)),
                draw(floats(steps)),
                draw(st.booleans()),
                draw(st.booleans()),
                draw(st.sampled_from(Source)),
                draw(st.integers(-(2**63), 2**63 - 1)),
                draw(st.dictionaries(TEXT, PLAIN, max_size=3)),
            )
        )
    return episodes


def foreign_lerobot(folder: Path) -> Path:
    """Two episodes of two and three frames, two cameras, no reward, no success, no ends; large actions."""
    import pandas
    import pyarrow as pa
    import pyarrow.parquet as pq

    frames = 5
    cameras = ("front", "wrist")
    columns: dict[str, Any] = {
        "observation.state": np.arange(2.0 * frames, dtype=np.float32).reshape(frames, 2).tolist(),
        "action": [[0.0], [5.0], [10.0], [2.5], [7.5]],
        "episode_index": [0, 0, 1, 1, 1],
        "frame_index": [0, 1, 0, 1, 2],
        "index": list(range(5)),
        "task_index": [1, 1, 0, 0, 0],
        "timestamp": [0.0, 0.1, 0.0, 0.1, 0.2],
    }
    for value, camera in enumerate(cameras):
        pictures = [encode_image(np.full((2, 4, 3), 10 * value + i, np.uint8), "png") for i in range(frames)]
        columns[f"observation.images.{camera}"] = [{"bytes": p, "path": None} for p in pictures]
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": [1], "names": ["x"]},
        **{n: {"dtype": "int64", "shape": [1], "names": None} for n in ("episode_index", "frame_index", "index")},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "observation.images.front": {"dtype": "image", "shape": [2, 4, 3], "names": ["height", "width", "channels"]},
        "observation.images.wrist": {"dtype": "image", "shape": [3, 2, 4], "names": ["channels", "height", "width"]},
    }
    rows = [
        {"episode_index": 0, "tasks": ["b"], "length": 2, "data/chunk_index": 0, "data/file_index": 0},
        {"episode_index": 1, "tasks": ["a"], "length": 3, "data/chunk_index": 0, "data/file_index": 0},
    ]
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    pandas.DataFrame({"task_index": [0, 1]}, index=["put the pot away", "fold the cloth"]).to_parquet(
        folder / "meta/tasks.parquet"
    )
    info = {
        "codebase_version": "v3.0", "fps": 10, "features": features, "total_episodes": 2, "total_frames": 5,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
    }  # fmt: skip
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/stats.json").write_text(json.dumps({"action": {"min": [0.0], "max": [10.0]}}))
    return folder


def foreign_minari(root: Path, monkeypatch: pytest.MonkeyPatch, observations: Any, space: Any, **buffer: Any) -> None:
    """``other-v0`` in ``root``: one episode of two steps, and nothing of ours in it."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    steps = 2
    fields: dict[str, Any] = {
        "actions": np.array([[0.5], [-1]], np.float32),
        "rewards": [1.0, 2.0],
        "terminations": [False] * steps,
        "truncations": [False, True],
        "seed": 5,
    } | buffer
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "other-v0",
            [EpisodeBuffer(observations=observations, **fields)],
            observation_space=space,
            action_space=spaces.Box(-2, 2, (1,), np.float32),
        )
