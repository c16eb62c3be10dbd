"""LeRobotDataset v3 in and out.

lerobot cannot be had beside our other packages, so that what it would see is checked against its source: the types of
columns, the shapes of statistics and the way in which it looks up an episode are written down here a second time.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

import rollouts.episodes.lerobot_export
from rollouts.envs.types import Episode, Source
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.lerobot_export import export_lerobot
from rollouts.episodes.lerobot_import import LeRobotDefaults, import_lerobot
from rollouts.episodes.lerobot_layout import histogram, image_statistics, statistics
from rollouts.episodes.video import VideoReader, VideoWriter
from tests.rollouts.episodes.made import episode, foreign_lerobot, same, some_episodes

FEATURES = {
    "observation.state": ("float32", [2]),
    "action": ("float32", [1]),
    "next.reward": ("float32", [1]),
    "next.done": ("bool", [1]),
    "next.truncated": ("bool", [1]),
    "next.success": ("bool", [1]),
    "timestamp": ("float32", [1]),
    "frame_index": ("int64", [1]),
    "episode_index": ("int64", [1]),
    "index": ("int64", [1]),
    "task_index": ("int64", [1]),
}


def three(pixels: int = 0) -> list[Episode]:
    made = [
        episode("a", 3, pixels=pixels, seed=1),
        episode("b", 1, pixels=pixels, seed=2, task="close", source=Source.FAILURE),
        episode("c", 4, pixels=pixels, seed=3),
    ]
    made[1] = replace(made[1], terminated=False, truncated=True, policy_version=4)
    made[2] = replace(made[2], detected=np.linspace(0, 1, 4, dtype=np.float32), metadata={"seed": 1, "x": [1.5, "é"]})
    return made


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


# What goes out.


def test_info_says_what_lerobot_asks_of_it(tmp_path: Path) -> None:
    export_lerobot(tmp_path / "out", three(pixels=4), fps=5, robot_type="sawyer")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    # The fields of its class DatasetInfo, which warns of any other.
    assert set(info) == {
        "codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "chunks_size",
        "data_files_size_in_mb", "video_files_size_in_mb", "data_path", "video_path", "robot_type", "splits",
    }  # fmt: skip
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 5, "sawyer")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 8, 2)
    assert info["splits"] == {"train": "0:3"} and info["video_path"] is None
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    images = {"observation.images.image": ("image", [4, 4, 3])}
    assert {k: (f["dtype"], f["shape"]) for k, f in info["features"].items()} == FEATURES | images
    assert info["features"]["observation.images.image"]["names"] == ["height", "width", "channels"]
    assert all("names" in entry for entry in info["features"].values())


def test_data_have_the_types_that_lerobot_loads_them_with(tmp_path: Path) -> None:
    export_lerobot(tmp_path / "out", three(pixels=4))
    file = tmp_path / "out/data/chunk-000/file-000.parquet"
    # feature_utils.get_hf_features_from_features
    expected: dict[str, Any] = {"observation.images.image": datasets.Image()}
    for key, (dtype, [size]) in FEATURES.items():
        value = datasets.Value(dtype)
        expected[key] = value if size == 1 else datasets.Sequence(value, length=size)
    types = datasets.Features(expected)
    schema = pq.read_schema(file)
    assert {n: schema.field(n).type for n in schema.names} == {f.name: f.type for f in types.arrow_schema}
    assert datasets.Features.from_arrow_schema(schema) == types
    # io_utils.load_nested_dataset
    loaded = datasets.Dataset.from_parquet([str(file)], features=types, cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 8 and np.asarray(loaded[0]["observation.images.image"]).shape == (4, 4, 3)
    # One row group an episode.
    assert [pq.read_metadata(file).row_group(i).num_rows for i in range(3)] == [3, 1, 4]


def test_frames_say_what_happened(tmp_path: Path) -> None:
    episodes = three()
    export_lerobot(tmp_path / "out", episodes, fps=5)
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet").to_pydict()
    assert rows["index"] == list(range(8))
    assert rows["frame_index"] == [0, 1, 2, 0, 0, 1, 2, 3]
    assert rows["episode_index"] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert rows["task_index"] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert rows["timestamp"] == pytest.approx([0, 0.2, 0.4, 0, 0, 0.2, 0.4, 0.6])
    assert rows["next.done"] == [False, False, True, True, False, False, False, True]
    assert rows["next.truncated"] == [False, False, False, True, False, False, False, False]
    assert rows["next.success"] == [False, False, True, True, False, False, False, True]
    assert rows["next.reward"] == [-1, -1, 0, 0, -1, -1, -1, 0]
    states = np.concatenate([e.observations["state"][:-1] for e in episodes])
    assert np.array_equal(np.array(rows["observation.state"], np.float32), states)
    assert rows["action"] == np.concatenate([e.actions for e in episodes])[:, 0].tolist()


def test_tasks_are_a_pandas_table_by_their_words(tmp_path: Path) -> None:
    export_lerobot(tmp_path / "out", three())
    tasks = pandas.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert tasks.index.name == "task" and int(tasks.loc["close it"].task_index) == 1
    assert tasks.index.tolist() == ["open it", "close it"] and tasks["task_index"].tolist() == [0, 1]


@pytest.mark.parametrize("video", [False, True])
def test_the_episodes_table_has_its_columns(tmp_path: Path, video: bool) -> None:
    export_lerobot(tmp_path / "out", three(pixels=4), fps=5, video=video)
    table = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    wanted = {
        "episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index",
        "data/file_index", "meta/episodes/chunk_index", "meta/episodes/file_index", *flatten({"stats": stats}),
    }  # fmt: skip
    if video:
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        wanted |= {f"videos/observation.images.image/{name}" for name in names}
    assert {name for name in table.column_names if not name.startswith("polestar/")} == wanted
    rows = table.to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"], r["length"]) for r in rows] == [
        (0, 3, 3),
        (3, 4, 1),
        (4, 8, 4),
    ]
    assert [r["tasks"] for r in rows] == [["open it"], ["close it"], ["open it"]]
    if video:
        times = [(r[f"videos/observation.images.image/{n}_timestamp"]) for r in rows for n in ("from", "to")]
        assert times == pytest.approx([0, 0.6, 0.6, 0.8, 0.8, 1.6])


def test_statistics_have_the_shapes_that_lerobot_checks(tmp_path: Path) -> None:
    episodes = three(pixels=4)
    export_lerobot(tmp_path / "out", episodes)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert set(stats) == set(FEATURES) | {"observation.images.image"}
    for key, values in stats.items():
        assert set(values) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
        for name, value in values.items():
            shape = np.array(value).shape
            # compute_stats._validate_stat_value
            wanted = (1,) if name == "count" else (3, 1, 1) if "image" in key else tuple(FEATURES[key][1])
            assert shape == wanted, (key, name)
    states = np.concatenate([e.observations["state"][:-1] for e in episodes])
    assert stats["observation.state"]["mean"] == pytest.approx(states.mean(0))
    assert stats["observation.state"]["q90"] == pytest.approx(np.quantile(states, 0.9, axis=0))
    pixels = np.concatenate([e.observations["image"][:-1] for e in episodes]) / 255
    found = stats["observation.images.image"]
    assert np.ravel(found["mean"]) == pytest.approx(pixels.mean((0, 1, 2)))
    assert np.ravel(found["std"]) == pytest.approx(pixels.std((0, 1, 2)))
    assert found["count"] == [8]


def test_statistics_by_hand() -> None:
    found = statistics(np.array([[1.0], [3.0]]))
    assert {k: v.tolist() for k, v in found.items()} == {
        "min": [1], "max": [3], "mean": [2], "std": [1], "count": [2],
        "q01": [pytest.approx(1.02)], "q10": [pytest.approx(1.2)], "q50": [2], "q90": [pytest.approx(2.8)],
        "q99": [pytest.approx(2.98)],
    }  # fmt: skip
    frames = np.zeros((1, 1, 4, 3), np.uint8)
    frames[0, 0, :, 0] = [0, 51, 51, 255]
    image = image_statistics(histogram(frames), 1)
    red = {name: value.reshape(-1)[0] for name, value in image.items()}
    # 0, 0.2, 0.2, 1: mean 0.35, mean square 0.27.
    assert red["mean"] == pytest.approx(0.35) and red["std"] == pytest.approx((0.27 - 0.35**2) ** 0.5)
    assert (red["min"], red["max"], red["q50"], red["q99"]) == (0, 1, pytest.approx(0.2), 1)


def test_files_are_cut_at_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts.episodes.lerobot_export, "DATA_MB", 0)
    monkeypatch.setattr(rollouts.episodes.lerobot_export, "CHUNK_FILES", 2)
    episodes = three(pixels=4)
    export_lerobot(tmp_path / "out", episodes)
    files = sorted(str(p.relative_to(tmp_path / "out/data")) for p in (tmp_path / "out/data").rglob("*.parquet"))
    assert files == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    assert all(same(a, b) for a, b in zip(episodes, import_lerobot(tmp_path / "out"), strict=True))


# There and back.


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(some_episodes(tame=True))
def test_any_episodes_come_back(episodes: list[Episode]) -> None:
    def tame(values: Any) -> Any:
        """One NaN for all, and actions within their box."""
        return np.where(np.isnan(values), np.float32(np.nan), values)

    for e in episodes:
        e.actions[...] = np.tanh(np.nan_to_num(e.actions))
        e.rewards[...], e.detected[...] = np.nan_to_num(e.rewards), tame(e.detected)
        e.observations["state"][...] = np.nan_to_num(e.observations["state"])
    with tempfile.TemporaryDirectory() as folder:
        back = list(import_lerobot(export_lerobot(Path(folder) / "out", episodes)))
    assert len(back) == len(episodes) and all(same(a, b) for a, b in zip(episodes, back, strict=True))


def smooth(steps: int, seed: int) -> Episode:
    """Pictures such as a video keeps well: slow and without edges."""
    x, y = np.meshgrid(np.arange(32), np.arange(16))
    frames = [np.stack([3 * x + t, 5 * y + 2 * t, 2 * (x + y) + seed], -1) for t in range(steps + 1)]
    return replace(episode(f"{seed}", steps, seed=seed), observations={"image": np.stack(frames).astype(np.uint8)})


def test_a_video_loses_little_and_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = [smooth(7, 1), smooth(1, 40), smooth(12, 80)]
    folder = export_lerobot(tmp_path / "out", episodes, video=True, fps=10)
    info = json.loads((folder / "meta/info.json").read_text())
    entry = info["features"]["observation.images.image"]
    assert entry["dtype"] == "video" and info["video_path"].endswith(
        "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    )
    assert (entry["info"]["video.codec"], entry["info"]["video.pix_fmt"], entry["info"]["video.fps"]) == (
        "h264",
        "yuv420p",
        10,
    )
    # Frames of a video are no column.
    assert "observation.images.image" not in pq.read_schema(folder / "data/chunk-000/file-000.parquet").names
    back = list(import_lerobot(folder))
    for whole, found in zip(episodes, back, strict=True):
        frames, known = found.observations["image"], whole.observations["image"]
        assert frames.shape == known.shape
        assert np.abs(frames[:-1].astype(int) - known[:-1]).mean() < 6
        # The last observation stands beside the video, whole.
        assert np.array_equal(frames[-1], known[-1])
        assert same(replace(found, observations={}), replace(whole, observations={}))
    reader = VideoReader(folder / "videos/observation.images.image/chunk-000/file-000.mp4")
    assert len(reader.read(0, 20)) == 20
    with pytest.raises(EpisodeError, match="ends before frame 20"):
        reader.read(0, 21)


def test_frames_stand_at_their_time(tmp_path: Path) -> None:
    """lerobot asks for the frame at ``from_timestamp + frame_index / fps``, within a ten-thousandth of a second."""
    import subprocess

    import imageio_ffmpeg

    frames = smooth(9, 0).observations["image"]
    with VideoWriter(tmp_path / "v.mp4", 16, 32, fps=30) as writer:
        writer.write(frames)
    arguments = ["-i", str(tmp_path / "v.mp4"), "-vf", "showinfo", "-f", "null", "-"]
    log = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *arguments], capture_output=True, text=True).stderr
    times = [float(line.split("pts_time:")[1].split()[0]) for line in log.splitlines() if "pts_time:" in line]
    assert times == pytest.approx([i / 30 for i in range(10)], abs=1e-4)


def test_videos_have_even_sides(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="frames of 5x5 cannot become a video"):
        export_lerobot(tmp_path / "out", three(pixels=5), video=True)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    square = replace(episode("a"), observations={"map": np.zeros((4, 2, 2), np.float32)})
    for name, episodes, message in (
        ("old", [episode("a")], "exists already"),
        ("new", [], "no episodes to export"),
        ("new", [episode("a"), episode("b", pixels=4)], "need a store of their own"),
        ("new", [episode("a", 0)], "has no step"),
        ("new", [square], "holds vectors and pictures"),
    ):
        with pytest.raises(EpisodeError, match=message):
            export_lerobot(tmp_path / name, episodes)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


# Datasets of others: made here as lerobot makes them, with nothing of ours in it.


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return foreign_lerobot(tmp_path / "bridge")


def test_what_others_leave_out_has_its_default(foreign: Path) -> None:
    first, second = import_lerobot(foreign, LeRobotDefaults(camera="front", rescale=True))
    assert (first.id, second.id) == ("bridge/0", "bridge/1")
    assert (first.task.name, first.task.instruction, first.source) == ("fold the cloth", "fold the cloth", Source.PRIOR)
    # Actions from [0, 10] to [-1, 1]; the observation after the last action is the one before it, again.
    assert first.actions.tolist() == [[-1], [0]] and second.actions.tolist() == [[1], [-0.5], [0.5]]
    assert first.observations["state"].tolist() == [[0, 1], [2, 3], [2, 3]]
    assert second.observations["image"][:, 0, 0, 0].tolist() == [2, 3, 4, 4]
    assert second.observations["wrist"][:, 0, 0, 0].tolist() == [12, 13, 14, 14]
    assert second.observations["wrist"].shape == (4, 2, 4, 3)
    assert np.isnan(first.rewards).all() and np.isnan(first.detected).all() and not first.success.any()
    # Nothing says that the task was over: cut, so that the last value counts.
    assert (first.terminated, first.truncated) == (False, True)
    assert first.policy_version == 0 and first.metadata == {}


def test_success_can_be_assumed(foreign: Path) -> None:
    defaults = LeRobotDefaults(Source.DEMONSTRATION, camera="wrist", assume_success=True, rescale=True)
    _, second = import_lerobot(foreign, defaults)
    assert second.success.tolist() == [False, False, True] and second.source is Source.DEMONSTRATION
    assert (second.terminated, second.truncated) == (True, False)


ENDS = [
    # next.done, next.success, next.truncated in the last frame → terminated, truncated
    ({"next.done": True}, (False, True)),
    ({"next.done": True, "next.success": True}, (True, False)),
    ({"next.done": True, "next.success": False}, (False, True)),
    ({"next.done": True, "next.truncated": True}, (False, True)),
    ({"next.done": True, "next.truncated": False}, (True, False)),
    ({"next.done": False, "next.success": True}, (True, False)),
]


@pytest.mark.parametrize(("last", "ends"), ENDS)
def test_ends_are_told_apart_as_far_as_they_are_known(
    foreign: Path, last: dict[str, bool], ends: tuple[bool, bool]
) -> None:
    file = foreign / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for name, value in last.items():
        table = table.append_column(name, pa.array([False, value, False, False, value]))
    pq.write_table(table, file)
    for found in import_lerobot(foreign, LeRobotDefaults(camera="front", rescale=True)):
        assert (found.terminated, found.truncated) == ends
        assert bool(found.success[-1]) == last.get("next.success", False)


def test_a_choice_between_cameras_is_asked_for(foreign: Path) -> None:
    for camera in (None, "side"):
        with pytest.raises(EpisodeError, match="name the camera that becomes 'image': it has front, wrist"):
            import_lerobot(foreign, LeRobotDefaults(camera=camera))


def test_large_actions_are_told(foreign: Path) -> None:
    with pytest.raises(EpisodeError, match=r"actions of episode 0 lie outside \[-1, 1\]; rescale"):
        list(import_lerobot(foreign, LeRobotDefaults(camera="front")))
    (foreign / "meta/stats.json").write_text("{}")
    with pytest.raises(EpisodeError, match="no bounds of 'action'"):
        import_lerobot(foreign, LeRobotDefaults(camera="front", rescale=True))


# Bad files.


def test_bad_datasets_are_told(tmp_path: Path) -> None:
    whole = export_lerobot(tmp_path / "whole", three())
    with pytest.raises(EpisodeError, match="no LeRobotDataset there"):
        import_lerobot(tmp_path)

    def broken(name: str) -> Path:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "broken")) / name

    data, episodes = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
    info = json.loads((whole / "meta/info.json").read_text())
    for change, message in (
        ({"codebase_version": "v2.1"}, "LeRobotDataset v2.1; v3.0 is read: convert it"),
        ({"total_episodes": 9}, "3 episodes in meta/episodes, and meta/info.json counts 9"),
        ({"features": {}}, "its frames have no 'action'"),
    ):
        broken("meta/info.json").write_text(json.dumps(info | change))
        with pytest.raises(EpisodeError, match=message):
            list(import_lerobot(tmp_path / "broken"))
    for name in (data, episodes):
        broken(name).write_bytes(b"PAR1 and nothing more")
        with pytest.raises(EpisodeError, match="not a Parquet file that can be read"):
            list(import_lerobot(tmp_path / "broken"))
    broken(data).unlink()
    with pytest.raises(EpisodeError, match="missing, and the dataset counts on it"):
        list(import_lerobot(tmp_path / "broken"))
    file = broken(data)
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(EpisodeError, match="2 frames of episode 0, which has 3"):
        list(import_lerobot(tmp_path / "broken"))


def test_a_bad_video_is_told(tmp_path: Path) -> None:
    folder = export_lerobot(tmp_path / "out", [smooth(3, 0)], video=True)
    file = folder / "videos/observation.images.image/chunk-000/file-000.mp4"
    file.write_bytes(b"no film")
    with pytest.raises(EpisodeError, match="not a video that ffmpeg can read"):
        list(import_lerobot(folder))
    file.unlink()
    with pytest.raises(EpisodeError, match="missing, and the dataset counts on it"):
        list(import_lerobot(folder))
