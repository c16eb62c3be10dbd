"""Folders of episodes in any format: what they are, and from one into another."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("minari")

from gymnasium import spaces

from rollouts.envs.exchange import describe_any, export_episodes, import_episodes
from rollouts.envs.minari import export_minari
from rollouts.envs.prior import Reading, episode_format, episode_rate, open_episodes
from rollouts.envs.types import Episode, Source, Task
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.lerobot_export import export_lerobot
from rollouts.episodes.store import read_episodes, write_episodes
from tests.rollouts.episodes.made import episode, foreign_lerobot, foreign_minari, same

Make = Callable[[Path, list[Episode]], object]
MAKERS: dict[str, Make] = {
    "polestar": lambda folder, episodes: write_episodes(folder, episodes),
    "lerobot": lambda folder, episodes: export_lerobot(folder, episodes, fps=20),
    "minari": lambda folder, episodes: export_minari(folder.name, episodes, root=folder.parent),
}


def some() -> list[Episode]:
    first, second = episode("a", 3, pixels=8, seed=1), episode("b", 5, pixels=8, seed=2)
    return [first, replace(second, terminated=False, truncated=True, source=Source.FAILURE, metadata={"rejected": 4})]


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    MAKERS[request.param](tmp_path / "some-v0", some())
    return request.param, tmp_path / "some-v0"


def test_every_format_is_known_and_opened(made: tuple[str, Path]) -> None:
    format, folder = made
    assert episode_format(folder) == format
    assert all(same(a, b) for a, b in zip(some(), open_episodes(folder), strict=True))
    assert episode_rate(folder) == (20 if format == "lerobot" else None)


def test_every_format_has_the_same_card(made: tuple[str, Path]) -> None:
    format, folder = made
    card = describe_any(folder)
    assert [(g.source, g.lengths, g.rejected) for g in card.groups] == [
        ("demonstration", (3,), 0),
        ("failure", (5,), 4),
    ]
    assert str(card.layout) == "image uint8[8, 8, 3], state float32[2], action [1]"
    lines = card.markdown().splitlines()
    if format == "polestar":
        assert lines[0].startswith("2 episodes, 8 steps, 1 shards, ") and "(PNG)" in lines[2]
    else:
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        assert lines[0] == f"2 episodes, 8 steps, {len(files)} files, {size / 1e6:.1f} MB"
        assert lines[2] == "Observations `image` uint8[8x8x3], `state` float32[2]; actions [1]."


@pytest.mark.parametrize("to", ["lerobot", "minari"])
def test_every_format_goes_out_and_comes_in(made: tuple[str, Path], to: Any, tmp_path: Path) -> None:
    format, folder = made
    fps = 7 if to == "lerobot" and format != "lerobot" else None
    out = export_episodes(folder, tmp_path / "out-v1", to, fps=fps)
    assert episode_format(out) == to and out == tmp_path / "out-v1"
    # A LeRobotDataset keeps the rate that it came with.
    assert episode_rate(out) == (None if to == "minari" else fps or 20)
    back = import_episodes(out, tmp_path / "back")
    assert episode_rate(back) == episode_rate(out)
    assert all(same(a, b) for a, b in zip(some(), read_episodes(back), strict=True))


def test_the_rate_goes_along_where_there_is_one(tmp_path: Path) -> None:
    write_episodes(tmp_path / "a", some())
    with pytest.raises(EpisodeError, match="does not tell how many decisions the robot makes in a second: give fps"):
        export_episodes(tmp_path / "a", tmp_path / "out", "lerobot")
    write_episodes(tmp_path / "b", some(), rate=1 / 0.0375)
    assert episode_rate(tmp_path / "b") == pytest.approx(1 / 0.0375)
    assert episode_rate(export_episodes(tmp_path / "b", tmp_path / "out", "lerobot")) == 27
    with pytest.raises(EpisodeError, match="leave out fps and video"):
        export_episodes(tmp_path / "a", tmp_path / "out-v0", "minari", fps=27)


@pytest.mark.parametrize("fps", ["ten", 0, -1, None, float("nan")])
def test_a_rate_that_is_none_is_said_and_makes_nothing(tmp_path: Path, fps: Any) -> None:
    folder = export_lerobot(tmp_path / "lerobot", some())
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"fps": fps}))
    with pytest.raises(EpisodeError, match=r"info\.json: fps is .* where frames a second should be: put a number"):
        import_episodes(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["lerobot"]


def test_what_a_lerobot_dataset_leaves_open_is_said(tmp_path: Path) -> None:
    folder = foreign_lerobot(tmp_path / "bridge")
    reading = Reading(source=Source.DEMONSTRATION, camera="wrist", assume_success=True, rescale=True)
    first, _ = read_episodes(import_episodes(folder, tmp_path / "out", reading))
    assert first.source is Source.DEMONSTRATION and first.succeeded and first.terminated
    assert set(first.observations) == {"state", "image", "front"} and first.actions.tolist() == [[-1], [0]]
    assert describe_any(folder, reading).groups[0].succeeded == 1
    for wrong, message in (
        (Reading(), "name the camera"),
        (Reading(camera="front"), "rescale"),
        (Reading(task=Task("a", "a"), success_key="b"), "leave out task, success_key, which says"),
    ):
        with pytest.raises(EpisodeError, match=message):
            import_episodes(folder, tmp_path / "other", wrong)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bridge", "out"]


def test_what_a_minari_dataset_leaves_open_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = {"done": np.array([False, False, True])}
    foreign_minari(tmp_path, monkeypatch, np.zeros((3, 2)), spaces.Box(-9, 9, (2,), np.float64), infos=infos)
    folder, task = tmp_path / "other-v0", Task("reach", "reach it")
    [plain] = open_episodes(folder)
    assert (plain.source, plain.task.name, plain.succeeded) == (Source.PRIOR, "other-v0", False)
    reading = Reading(source=Source.FAILURE, task=task, success_key="done")
    [told] = read_episodes(import_episodes(folder, tmp_path / "out", reading))
    assert (told.source, told.task, told.succeeded) == (Source.FAILURE, task, True)
    with pytest.raises(EpisodeError, match="leave out camera, assume_success, rescale, which says nothing"):
        open_episodes(folder, Reading(camera="front", assume_success=True, rescale=True))


def test_our_own_store_leaves_nothing_open(tmp_path: Path) -> None:
    write_episodes(tmp_path / "a", some())
    with pytest.raises(EpisodeError, match="leave out source"):
        open_episodes(tmp_path / "a", Reading(source=Source.PRIOR))
    with pytest.raises(EpisodeError, match="is a store of ours already; copy the folder"):
        import_episodes(tmp_path / "a", tmp_path / "b")


def test_what_is_not_there_is_told_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "there is no such folder"), ("empty", "no episodes there")):
        with pytest.raises(
            EpisodeError, match=f"{name}: {message}: give a store of ours, a LeRobotDataset or a Minari"
        ):
            import_episodes(tmp_path / name, tmp_path / "out")
    folder = export_lerobot(tmp_path / "lerobot", some())
    file = next((folder / "data").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(EpisodeError, match="it is damaged"):
        import_episodes(folder, tmp_path / "out")
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 0}))
    for rows in (folder / "meta/episodes").rglob("*.parquet"):
        rows.unlink()
    with pytest.raises(EpisodeError, match="lerobot: no episodes in it"):
        import_episodes(folder, tmp_path / "out")
    with pytest.raises(EpisodeError, match="lerobot: no episodes in it"):
        describe_any(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "lerobot"]
