"""The store of episodes: every field comes back bit for bit, and a store is never half-written."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rollouts.episodes.store
from rollouts.envs.types import Episode, Source
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.store import INFO, SHARDS, EpisodeWriter, read_episodes, read_ids, read_info, write_episodes
from tests.rollouts.episodes.made import episode, same, some_episodes


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(some_episodes(), st.integers(1, 3))
def test_every_field_comes_back_bit_for_bit(episodes: list[Episode], shard_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        info = write_episodes(folder, episodes, shard_size=shard_size)
        back = list(read_episodes(folder))
        assert (info.episodes, info.steps) == (len(episodes), sum(map(len, episodes)))
        assert read_ids(folder) == [e.id for e in episodes]
    assert len(back) == len(episodes)
    assert all(same(one, other) for one, other in zip(episodes, back, strict=True))


def test_the_layout_and_the_counts_are_in_the_json(tmp_path: Path) -> None:
    episodes = [
        episode("a", 3, pixels=4),
        episode("b", 2, pixels=4, source=Source.FAILURE),
        episode("c", 4, pixels=4),
        episode("d", 1, pixels=4, task="close"),
    ]
    info = write_episodes(tmp_path, episodes, shard_size=3)
    plain = json.loads((tmp_path / INFO).read_text())
    assert (plain["format"], plain["version"], plain["image_format"]) == ("polestar-episodes", 1, "png")
    assert (plain["episodes"], plain["steps"]) == (4, 10)
    assert plain["counts"][0] == {
        "task": "open",
        "instruction": "open it",
        "source": "demonstration",
        "episodes": 2,
        "steps": 7,
    }
    assert plain["layout"] == {
        "observations": {"image": {"shape": [4, 4, 3], "dtype": "uint8"}, "state": {"shape": [2], "dtype": "float32"}},
        "action": 1,
    }
    assert [(s["file"], s["episodes"], s["steps"]) for s in plain["shards"]] == [
        ("00000.parquet", 3, 9),
        ("00001.parquet", 1, 1),
    ]
    assert [(c.task, c.source, c.episodes, c.steps) for c in info.counts] == [
        ("open", "demonstration", 2, 7),
        ("open", "failure", 1, 2),
        ("close", "demonstration", 1, 1),
    ]
    assert read_info(tmp_path) == info


def test_appending_adds_shards_and_touches_none(tmp_path: Path) -> None:
    write_episodes(tmp_path, [episode("a"), episode("b")], shard_size=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / SHARDS).iterdir()}
    write_episodes(tmp_path, [episode("c")])
    after = {file.name: file.read_bytes() for file in (tmp_path / SHARDS).iterdir()}
    assert sorted(after) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert all(after[name] == content for name, content in before.items())
    assert [e.id for e in read_episodes(tmp_path)] == ["a", "b", "c"]


def test_the_same_episodes_make_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_episodes(tmp_path / name, [episode("x", pixels=4), episode("y", pixels=4)])
    for file in (INFO, f"{SHARDS}/00000.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_known_id_is_refused_or_passed_over(tmp_path: Path) -> None:
    write_episodes(tmp_path, [episode("a"), episode("b")])
    with pytest.raises(EpisodeError, match="holds episode 'b' already"):
        write_episodes(tmp_path, [episode("b")])
    with pytest.raises(EpisodeError, match="holds episode 'c' already"):
        write_episodes(tmp_path, [episode("c"), episode("c")])
    info = write_episodes(tmp_path, [episode("b"), episode("c"), episode("c")], known="skip")
    assert info.episodes == 3 and read_ids(tmp_path) == ["a", "b", "c"]


def test_a_store_has_one_rate_which_it_keeps(tmp_path: Path) -> None:
    assert write_episodes(tmp_path, [episode("a")]).rate is None
    assert write_episodes(tmp_path, [episode("b")], rate=12.5).rate == 12.5
    assert write_episodes(tmp_path, [episode("c")]).rate == 12.5
    with pytest.raises(EpisodeError, match=r"have 12\.5 decisions a second, not 20; use another folder"):
        write_episodes(tmp_path, [episode("d")], rate=20)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(EpisodeError, match="rate must be above 0 decisions a second"):
            write_episodes(tmp_path, [episode("d")], rate=rate)
    assert read_ids(tmp_path) == ["a", "b", "c"]


def test_reading_a_part(tmp_path: Path) -> None:
    episodes = [
        episode("a", pixels=4),
        episode("b", pixels=4, source=Source.FAILURE),
        episode("c", pixels=4, task="close"),
        episode("d", pixels=4, task="close", source=Source.FAILURE),
    ]
    write_episodes(tmp_path, episodes, shard_size=2)
    assert [e.id for e in read_episodes(tmp_path, tasks=["close"])] == ["c", "d"]
    assert [e.id for e in read_episodes(tmp_path, sources=[Source.FAILURE])] == ["b", "d"]
    assert [e.id for e in read_episodes(tmp_path, tasks=["open"], sources=[Source.DEMONSTRATION])] == ["a"]
    assert list(read_episodes(tmp_path, tasks=["nothing"])) == []
    for part, whole in zip(read_episodes(tmp_path, keys=["state"]), episodes, strict=True):
        assert list(part.observations) == ["state"]
        assert np.array_equal(part.observations["state"], whole.observations["state"])
    with pytest.raises(EpisodeError, match="no observation 'depth'; they have image, state"):
        read_episodes(tmp_path, keys=["depth"])


def test_arrays_can_be_written_to(tmp_path: Path) -> None:
    write_episodes(tmp_path, [episode("a", pixels=4)])
    [back] = read_episodes(tmp_path)
    back.actions[0] = 0.5
    back.observations["image"][0] = 7
    assert back.actions[0] == 0.5 and (back.observations["image"][0] == 7).all()


def test_jpeg_is_smaller_and_close(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    smooth = np.stack([4 * x, 4 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    noisy = np.random.default_rng(0).integers(0, 8, (4, 32, 32, 3), np.uint8)
    picture = replace(episode("a"), observations={"image": smooth + noisy})
    for format in ("png", "jpeg"):
        write_episodes(tmp_path / format, [picture], image_format=format)  # type: ignore[arg-type]
    [back] = read_episodes(tmp_path / "jpeg")
    error = np.abs(back.observations["image"].astype(int) - picture.observations["image"])
    assert 0 < error.mean() < 4
    sizes = {f: (tmp_path / f / SHARDS / "00000.parquet").stat().st_size for f in ("png", "jpeg")}
    assert sizes["jpeg"] < sizes["png"]
    with pytest.raises(EpisodeError, match="its pictures are jpeg, not png"):
        write_episodes(tmp_path / "jpeg", [replace(picture, id="b")])


def test_the_datasets_library_reads_shards_and_sees_pictures(tmp_path: Path) -> None:
    import datasets

    whole = episode("a", pixels=4)
    write_episodes(tmp_path / "store", [whole])
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "store" / SHARDS / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    row = table[0]
    assert (row["id"], row["task"], row["terminated"], row["truncated"]) == ("a", "open", True, False)
    assert np.array_equal(np.asarray(row["observation.state"], np.float32), whole.observations["state"])
    pictures = np.stack([np.asarray(picture) for picture in row["observation.image"]])
    assert np.array_equal(pictures, whole.observations["image"])


# What can go wrong while writing.


def test_an_error_loses_only_the_shard_that_was_being_filled(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from (episode("a"), episode("b"), episode("c"))
        raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="simulator"):
        write_episodes(tmp_path, broken(), shard_size=2)
    assert read_ids(tmp_path) == ["a", "b"]
    assert write_episodes(tmp_path, [episode(c) for c in "abcd"], known="skip").episodes == 4
    assert read_ids(tmp_path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("victim", ["00001.parquet", INFO])
def test_a_crash_between_files_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    write_episodes(tmp_path, [episode("a")])
    replace_file = os.replace

    def crash(source: Any, target: Any) -> None:
        if Path(target).name == victim:
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(EpisodeError, match=f"{victim}: cannot be written: No space left"):
        write_episodes(tmp_path, [episode("lost")])
    monkeypatch.undo()
    assert read_ids(tmp_path) == ["a"]
    assert not list(tmp_path.rglob("*.part"))
    write_episodes(tmp_path, [episode("b")])
    assert [e.id for e in read_episodes(tmp_path)] == ["a", "b"]


def test_a_killed_writer_leaves_whole_shards(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from tests.rollouts.episodes.made import episode\n"
        "from rollouts.episodes.store import write_episodes\n"
        "def some():\n"
        "    yield from (episode(str(i)) for i in range(5))\n"
        "    os._exit(9)\n"
        "write_episodes(sys.argv[1], some(), shard_size=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert read_ids(tmp_path) == ["0", "1", "2", "3"]
    write_episodes(tmp_path, [episode("4")])
    assert len(list(read_episodes(tmp_path))) == 5


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.write(episode("a"))
        assert "a" in writer and "b" not in writer
        with pytest.raises(EpisodeError, match="another process is writing there"):
            write_episodes(tmp_path, [episode("b")])
    assert read_ids(tmp_path) == ["a"]
    write_episodes(tmp_path, [episode("b")])


def test_a_shard_is_closed_early_when_it_grows_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts.episodes.store, "SHARD_BYTES", 1)
    assert len(write_episodes(tmp_path, [episode(c) for c in "abc"]).shards) == 3


BAD = {
    "rewards is float64": {"rewards": np.zeros(3)},
    "success is bool [2]": {"success": np.zeros(2, np.bool_)},
    "detected is float32 [4]": {"detected": np.zeros(4, np.float32)},
    "actions is float32 [3]": {"actions": np.zeros(3, np.float32)},
    "3 actions need 4": {"observations": {"state": np.zeros((3, 2), np.float32)}},
    "cannot be kept": {"observations": {"state": np.array(["a"] * 4)}},
    "type >f4": {"observations": {"state": np.zeros((4, 2), ">f4")}},
    "need a store of their own": {"observations": {"state": np.zeros((4, 5), np.float32)}},
    "'where' is tuple": {"metadata": {"seed": 1, "where": (1, 2)}},
    "'where' is int64": {"metadata": {"where": np.int64(3)}},
    "1 is str 'x'": {"metadata": {1: "x"}},
}


@pytest.mark.parametrize("message", BAD)
def test_an_episode_that_cannot_be_kept_is_told_at_once(tmp_path: Path, message: str) -> None:
    write_episodes(tmp_path, [episode("a")])
    with pytest.raises(EpisodeError) as caught:
        write_episodes(tmp_path, [replace(episode("b"), **BAD[message])])
    assert message in str(caught.value) and "'b'" in str(caught.value) and "\n" not in str(caught.value)
    assert read_ids(tmp_path) == ["a"]


def test_an_empty_store_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no episodes there"):
        write_episodes(tmp_path / "new", [])


# What can go wrong while reading.


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_episodes(tmp_path, [episode("a", pixels=8), episode("b", pixels=8)])
    return tmp_path


def test_no_store_is_told_before_the_first_episode_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=f"no episodes there .no {INFO}"):
        read_episodes(tmp_path / "nowhere")


INFOS = {
    "not a JSON file": "{",
    "expected a JSON object, found list": "[]",
    "not a store of episodes .format None": "{}",
    "version 99 of the format; this program reads 1": '{"format": "polestar-episodes", "version": 99}',
    "damaged: KeyError": '{"format": "polestar-episodes", "version": 1}',
}


@pytest.mark.parametrize("message", INFOS)
def test_a_bad_json_is_told(store: Path, message: str) -> None:
    (store / INFO).write_text(INFOS[message])
    with pytest.raises(EpisodeError, match=message):
        read_info(store)


@pytest.mark.parametrize("cut", [0, 3, 500])
def test_a_cut_shard_is_told(store: Path, cut: int) -> None:
    shard = store / SHARDS / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(EpisodeError, match=r"00000\.parquet: damaged, and the store counts on it"):
        list(read_episodes(store))


def test_a_lost_shard_is_told(store: Path) -> None:
    (store / SHARDS / "00000.parquet").unlink()
    with pytest.raises(EpisodeError, match=r"00000\.parquet: missing"):
        list(read_episodes(store))


def test_a_shard_of_another_store_is_told(store: Path, tmp_path: Path) -> None:
    write_episodes(tmp_path / "other", [episode("c", pixels=8)])
    os.replace(tmp_path / "other" / SHARDS / "00000.parquet", store / SHARDS / "00000.parquet")
    with pytest.raises(EpisodeError, match="1 episodes where the store counts 2"):
        list(read_episodes(store))


def test_a_flipped_bit_is_found(store: Path) -> None:
    shard = store / SHARDS / "00000.parquet"
    content = bytearray(shard.read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(EpisodeError, match=r"00000\.parquet: .*damaged"):
        list(read_episodes(store))
