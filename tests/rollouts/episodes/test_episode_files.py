"""Folders that are whole or absent."""

from pathlib import Path

import pytest

from rollouts.episodes.files import EpisodeError, new_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as scratch:
        (scratch / "file").write_text("all")
        assert not target.exists() and scratch.parent == target.parent
    assert (target / "file").read_text() == "all" and target.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in target.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_half_of_one(tmp_path: Path, error: type[BaseException]) -> None:
    def half() -> None:
        with new_folder(tmp_path / "b") as scratch:
            (scratch / "file").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(EpisodeError, match=f"{name}: exists already"), new_folder(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 3


def test_what_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(EpisodeError, match="file/out: cannot be written: File exists")
    with refused, new_folder(tmp_path / "file" / "out"):
        pass
    refused = pytest.raises(EpisodeError, match="late: cannot be written: Directory not empty")
    with refused, new_folder(tmp_path / "late"):
        # Somebody else was quicker.
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "file").write_text("theirs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "late"]
