"""Minari in and out: what its own library reads, and what comes back."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

minari = pytest.importorskip("minari")

from gymnasium import spaces  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from minari.namespace import list_local_namespaces  # noqa: E402

from rollouts.envs.minari import ROOT, dataset_place, export_minari, import_minari  # noqa: E402
from rollouts.envs.types import Episode, Source, Task  # noqa: E402
from rollouts.episodes.files import EpisodeError  # noqa: E402
from tests.rollouts.episodes.made import episode, foreign_minari, same, some_episodes  # noqa: E402

FORMATS = ["hdf5", "arrow", "parquet"]


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def varied(pixels: int = 40) -> list[Episode]:
    """Each end, and each source; pictures of a size at which Minari would make them JPEG."""
    made = [episode(c, n, pixels=pixels, seed=n) for c, n in zip("abcd", (3, 1, 5, 2), strict=True)]
    return [
        made[0],
        replace(made[1], terminated=False, truncated=True, source=Source.FAILURE, policy_version=7),
        replace(made[2], terminated=False, truncated=False, detected=np.linspace(0, 1, 5, dtype=np.float32)),
        replace(made[3], terminated=True, truncated=True, metadata={"seed": 3, "nested": {"list": [1, "é", None]}}),
    ]


def test_what_goes_out_comes_back(tmp_path: Path, format: str) -> None:
    episodes = varied()
    folder = export_minari("robot/window-v0", episodes, root=tmp_path, data_format=format)
    assert folder == tmp_path / "robot" / "window-v0"
    for where in ("robot/window-v0", folder):
        back = list(import_minari(where, root=tmp_path))
        assert len(back) == 4 and all(same(a, b) for a, b in zip(episodes, back, strict=True))


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(some_episodes(tame=True))
def test_any_episodes_come_back(episodes: list[Episode]) -> None:
    with tempfile.TemporaryDirectory() as root:
        back = list(import_minari(export_minari("some-v0", episodes, root=root)))
        assert len(back) == len(episodes) and all(same(a, b) for a, b in zip(episodes, back, strict=True))


def test_minari_itself_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    episodes = varied()
    export_minari("robot/deep/window-v3", episodes, root=tmp_path, data_format=format)
    monkeypatch.setenv(ROOT, str(tmp_path))
    assert list(minari.list_local_datasets()) == ["robot/deep/window-v3"]
    assert set(list_local_namespaces()) == {"robot", "robot/deep"}
    dataset = minari.load_dataset("robot/deep/window-v3")
    assert (dataset.total_episodes, dataset.total_steps) == (4, 11)
    assert dataset.observation_space["state"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert dataset.observation_space["image"] == spaces.Box(0, 255, (40, 40, 3), np.uint8)
    assert dataset.action_space == spaces.Box(-1, 1, (1,), np.float32)
    for data, whole in zip(dataset, episodes, strict=True):
        steps = len(whole)
        assert len(data.observations["state"]) == steps + 1 and len(data.actions) == steps
        assert np.array_equal(data.observations["image"], whole.observations["image"])
        assert data.rewards.tolist() == whole.rewards.tolist()
        # The two kinds of ends stay apart, and stand in the last step alone.
        assert data.terminations.tolist() == [False] * (steps - 1) + [whole.terminated]
        assert data.truncations.tolist() == [False] * (steps - 1) + [whole.truncated]
        assert data.infos["success"].tolist() == [False, *whole.success.tolist()]
    facts = next(iter(dataset.storage.get_episode_metadata([1])))
    assert (facts["task"], facts["instruction"], facts["source"]) == ("open", "open it", "failure")


def test_the_environment_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(ROOT, "elsewhere")
    export_minari("a-v0", [episode("a")], root=tmp_path)
    assert os.environ[ROOT] == "elsewhere"
    monkeypatch.delenv(ROOT)
    export_minari("b-v0", [episode("a")], root=tmp_path)
    assert ROOT not in os.environ
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-v0", "b-v0"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    export_minari("a-v0", [episode("a")], root=tmp_path)
    for id, episodes, message in (
        ("a-v0", [episode("a")], "exists already"),
        ("b-v0", [], "no episodes to export"),
        ("b-v0", [episode("a"), episode("b", pixels=4)], "need a store of their own"),
        ("no version", [episode("a")], "does not name a Minari dataset"),
    ):
        with pytest.raises(EpisodeError, match=message):
            export_minari(id, episodes, root=tmp_path)
    with pytest.raises(EpisodeError, match="Minari cannot write it"):
        export_minari("b-v0", [episode("a")], root=tmp_path, data_format="csv")
    assert [p.name for p in tmp_path.iterdir()] == ["a-v0"]


def test_an_unreadable_episode_is_told_when_it_is_reached(tmp_path: Path) -> None:
    import h5py

    folder = export_minari("a-v0", [episode("a"), episode("b")], root=tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
    episodes = import_minari(folder)
    assert next(episodes).id == "a"
    with pytest.raises(EpisodeError, match="a-v0: Minari cannot read it"):
        next(episodes)


def test_a_folder_has_a_root_and_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "kept"
    monkeypatch.setenv(ROOT, str(root))
    assert dataset_place(root / "robot" / "window-v0") == (root, "robot/window-v0")
    assert dataset_place(root / "window-v0") == (root, "window-v0")
    assert dataset_place(tmp_path / "robot" / "window-v0") == (tmp_path / "robot", "window-v0")
    monkeypatch.chdir(tmp_path)
    assert dataset_place("window-v0") == (tmp_path, "window-v0")
    monkeypatch.delenv(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_place(tmp_path / ".minari/datasets/a/b-v1") == (tmp_path / ".minari/datasets", "a/b-v1")
    # To ask makes nothing.
    assert list(tmp_path.iterdir()) == []


# Datasets of others.


def test_a_plain_vector_is_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.arange(6.0).reshape(3, 2)
    foreign_minari(tmp_path, monkeypatch, states, spaces.Box(-9, 9, (2,), np.float64))
    [found] = import_minari("other-v0", root=tmp_path)
    assert found.id == "other-v0/0" and found.task == Task("other-v0", "other-v0") and found.source is Source.PRIOR
    assert found.observations["state"].dtype == np.float32
    assert np.array_equal(found.observations["state"], states)
    assert found.rewards.tolist() == [1, 2] and found.success.tolist() == [False, False]
    assert np.isnan(found.detected).all() and found.metadata == {"seed": 5}
    assert (found.terminated, found.truncated) == (False, True)


def test_a_plain_picture_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    foreign_minari(tmp_path, monkeypatch, pictures, spaces.Box(0, 255, (8, 8, 3), np.uint8))
    [found] = import_minari("other-v0", root=tmp_path)
    assert list(found.observations) == ["image"] and found.observations["image"].dtype == np.uint8


def test_goals_and_success_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"observation": np.ones((3, 2)), "desired_goal": np.zeros((3, 1))}
    space = spaces.Dict(observation=spaces.Box(-9, 9, (2,)), desired_goal=spaces.Box(-9, 9, (1,)))
    infos = {"is_success": np.array([False, False, True])}
    ends = {"terminations": [False, True], "truncations": [False, False]}
    foreign_minari(tmp_path, monkeypatch, parts, space, infos=infos, **ends)
    task = Task("reach", "reach the spot")
    [found] = import_minari("other-v0", root=tmp_path, source=Source.DEMONSTRATION, task=task, success_key="is_success")
    assert set(found.observations) == {"state", "desired_goal"}
    assert found.success.tolist() == [False, True] and found.task == task and found.source is Source.DEMONSTRATION
    assert (found.terminated, found.truncated) == (True, False)


def test_actions_beyond_the_box_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, space = np.zeros((3, 2)), spaces.Box(-9, 9, (2,), np.float64)
    foreign_minari(tmp_path, monkeypatch, states, space, actions=np.array([[0], [1.5]], np.float32))
    with pytest.raises(EpisodeError, match=r"actions of episode 0 lie outside \[-1, 1\]"):
        list(import_minari("other-v0", root=tmp_path))


def test_what_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no Minari dataset there"):
        import_minari("none-v0", root=tmp_path)
    folder = export_minari("a-v0", [episode("a")], root=tmp_path)
    metadata = folder / "data" / "metadata.json"
    plain = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(plain | {"minari_version": "99.0.0"}))
    with pytest.raises(EpisodeError, match=r"Minari cannot read it: .*99\.0\.0"):
        import_minari(folder)
    metadata.write_text("{")
    with pytest.raises(EpisodeError, match="Minari cannot read it"):
        import_minari(folder)
