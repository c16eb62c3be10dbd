"""Films and strips: every frame is there, the words are right, and nothing is left half written."""

from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from rollouts.envs.api import EnvError
from rollouts.envs.experts import expert
from rollouts.envs.film import GREEN, RED, caption, film_episodes, write_film, write_filmstrip
from rollouts.envs.point import PointScene
from rollouts.envs.rollout import Acting, from_hard_resets
from rollouts.envs.types import IMAGE, Episode


@pytest.fixture(scope="module")
def episode() -> Episode:
    env = PointScene(image=True)
    (episode,) = from_hard_resets(Acting(env, expert("there")), 1, 40, 0, ["there"])
    return replace(episode, detected=np.linspace(0, 0.987, len(episode), dtype=np.float32))


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_film_has_every_frame_and_lingers_on_the_last(episode: Episode, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    write_film(episode, path, fps=5)
    frames = iio.imread(path)
    # A GIF shows the last frame for longer, where a video shows it again.
    assert len(frames) == len(episode) + 1 + (5 if suffix == "mp4" else 0)
    assert frames.shape[2] == 336 and frames.shape[1] > 336
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_rendered_frames_may_be_given(episode: Episode, tmp_path: Path) -> None:
    frames = [np.full((60, 80, 3), 10 * t % 255, np.uint8) for t in range(len(episode) + 1)]
    write_film(replace(episode, observations={}), tmp_path / "a.mp4", frames, fps=5)
    # 336 wide, so 252 high; the band of words under it is 2 * round(1.6 * 16) = 52.
    assert iio.imread(tmp_path / "a.mp4").shape[1:3] == (304, 336)
    with pytest.raises(EnvError, match=f"{len(frames)} observations, and 3 frames"):
        write_film(episode, tmp_path / "b.mp4", frames[:3])


def test_frames_can_be_rendered_as_the_attempt_goes() -> None:
    env = PointScene()
    frames: list[np.ndarray] = []
    acting = Acting(env, expert("there"), on_step=lambda: frames.append(env.render()))
    (episode,) = from_hard_resets(acting, 1, 40, 0, ["there"])
    assert len(frames) == len(episode) + 1
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_strip_goes_from_the_first_picture_to_the_last(episode: Episode, tmp_path: Path, succeeded: bool) -> None:
    path = tmp_path / "strip.png"
    episode = replace(episode, success=episode.success & succeeded)
    write_filmstrip(episode, path, columns=5)
    strip = iio.imread(path)
    assert strip.shape == (168 + 32, 5 * 168, 3)
    pixels = np.asarray(episode.observations[IMAGE])
    np.testing.assert_array_equal(strip[84, 84], pixels[0, 8, 8])
    # The edge of the last picture tells the result; the first has none.
    assert tuple(strip[0, -1]) == (GREEN if succeeded else RED)
    assert tuple(strip[0, 0]) == tuple(pixels[0, 0, 0])
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]


def test_a_short_episode_has_a_short_strip(episode: Episode, tmp_path: Path) -> None:
    short = replace(
        episode,
        observations={IMAGE: episode.observations[IMAGE][:2]},
        actions=episode.actions[:1],
        success=episode.success[:1],
        detected=episode.detected[:1],
    )
    write_filmstrip(short, tmp_path / "strip.png", columns=8)
    assert iio.imread(tmp_path / "strip.png").shape[1] == 2 * 168


def test_the_words_say_task_step_result_and_probability(episode: Episode) -> None:
    last = len(episode)
    assert caption(episode, 0) == (f"there 0/{last}", "")
    assert caption(episode, 1) == (f"there 1/{last}", "truth no, detector 0.00")
    assert caption(episode, last) == (f"there {last}/{last} done", "truth yes, detector 0.99")
    blind = replace(episode, detected=np.full(last, np.nan, np.float32), success=np.zeros(last, bool))
    assert caption(blind, last) == (f"there {last}/{last} not done", "truth no")


def test_an_episode_without_pictures_says_so(episode: Episode, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="has no pictures"):
        write_film(replace(episode, observations={}), tmp_path / "a.gif")
    with pytest.raises(EnvError, match=r"a \.mp4 or a \.gif"):
        write_film(episode, tmp_path / "a.avi")


def test_episodes_are_filmed_each_under_its_number_and_id(episode: Episode, tmp_path: Path) -> None:
    odd = replace(episode, id="../point: ü/7")
    assert film_episodes(iter([episode, odd]), tmp_path) == 2
    stems = [f"0000-{episode.id.replace('/', '-')}", "0001--point-7"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{s}.{e}" for s in stems for e in ("mp4", "png"))
    assert film_episodes([], tmp_path) == 0


def test_a_film_that_fails_leaves_the_old_one(
    episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")

    def broken(half: Path, *_: object, **__: object) -> None:
        half.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(iio, "imwrite", broken)
    with pytest.raises(OSError, match="disk full"):
        write_film(episode, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
