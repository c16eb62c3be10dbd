"""Which frames are examples of what, and that no episode is on both sides of a split."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.success.errors import SuccessError
from rewards.success.frames import FrameConfig, episode_folds, frames_of, shows_success
from rollouts.envs.types import IMAGE, STATE, Source
from tests.rewards.success.toys import LEFT, demonstrations, episode, failures


def test_last_frames_are_done_and_those_before_them_left_out() -> None:
    one = episode([0.1, 0.2, 0.3, 0.8, 0.9])
    frames = frames_of([one, *failures(1)], FrameConfig(positive_frames=2, ambiguous_frames=1))
    assert frames.frame[:4].tolist() == [0, 1, 3, 4]
    assert frames.done[:4].tolist() == [False, False, True, True]
    assert not frames.done[4:].any()
    assert frames.episode.tolist() == [0] * 4 + [1] * 9
    assert len(frames) == 13
    np.testing.assert_array_equal(frames.images[3], one.observations[IMAGE][3])
    assert frames.states is not None
    np.testing.assert_array_equal(frames.states[:5], one.observations[STATE])


def test_the_end_of_another_tasks_demonstration_shows_this_one_undone() -> None:
    pair = [episode([0.1, 0.5, 0.9]), episode([0.9, 0.5, 0.1], LEFT)]
    frames = frames_of(pair, FrameConfig(positive_frames=1, ambiguous_frames=0))
    rows = list(zip(frames.frame.tolist(), frames.task.tolist(), frames.done.tolist(), strict=True))
    own = [(0, 0, False), (1, 0, False), (2, 0, True), (3, 1, False), (4, 1, False), (5, 1, True)]
    assert sorted(rows) == sorted([*own, (2, 1, False), (5, 0, False)])
    assert sorted(frames.frame[frames.of(1)].tolist()) == [2, 3, 4, 5]
    alone = frames_of(pair, FrameConfig(positive_frames=1, ambiguous_frames=0, other_tasks=False))
    assert len(alone) == 6


def test_the_simulators_truth_is_not_looked_at() -> None:
    plain = demonstrations(1)[0]
    lied = replace(plain, success=~plain.success, rewards=-plain.rewards)
    np.testing.assert_array_equal(frames_of([plain], FrameConfig()).done, frames_of([lied], FrameConfig()).done)


def test_prior_data_shows_success_where_it_ended() -> None:
    one = episode([0.1, 0.5, 0.9], source=Source.PRIOR)
    assert not shows_success(one)
    assert shows_success(replace(one, terminated=True))
    assert not shows_success(replace(one, source=Source.FAILURE, terminated=True))


def test_states_are_none_where_an_episode_has_none() -> None:
    one = demonstrations(1)[0]
    bare = replace(one, observations={IMAGE: one.observations[IMAGE]})
    assert frames_of([one, bare], FrameConfig()).states is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "no episodes"),
        ([episode([0.1, 0.2, 0.3, 0.4], source=Source.POLICY)], "is a policy's"),
        ([episode([0.1, 0.9])], "fewer than the 4"),
        ([replace(episode([0.1, 0.2, 0.3, 0.9]), observations={})], "has no images"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(broken: list, message: str) -> None:
    with pytest.raises(SuccessError, match=message):
        frames_of(broken, FrameConfig())


@given(st.integers(2, 9), st.integers(0, 6), st.integers(2, 6), st.integers(0, 3))
def test_folds_keep_episodes_whole_and_each_has_a_success(demos: int, fails: int, folds: int, seed: int) -> None:
    frames = frames_of([*demonstrations(demos), *failures(fails)], FrameConfig())
    rows = frames.of(0)
    fold = episode_folds(frames, rows, folds, seed)
    for number in np.unique(frames.episode[rows]):
        assert len(set(fold[frames.episode[rows] == number].tolist())) == 1
    parts = min(folds, demos)
    assert set(fold.tolist()) == set(range(parts))
    assert all(frames.done[rows][fold == part].any() for part in range(parts))
    np.testing.assert_array_equal(fold, episode_folds(frames, rows, folds, seed))


def test_one_demonstration_cannot_be_held_out() -> None:
    frames = frames_of([*demonstrations(1), *failures(2)], FrameConfig())
    with pytest.raises(SuccessError, match="'right' has 1 demonstrations"):
        episode_folds(frames, frames.of(0), 5, 0)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="positive_frames"):
        FrameConfig(positive_frames=0)
    with pytest.raises(ValueError, match="ambiguous_frames"):
        FrameConfig(ambiguous_frames=-1)
