"""Moments and data cards, against values worked out by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rollouts.envs.types import Episode, Source
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.statistics import ACTION, Moments, describe, moments, state_moments
from rollouts.episodes.store import write_episodes
from tests.rollouts.episodes.made import episode


def test_moments_are_those_of_all_steps() -> None:
    first = replace(
        episode("a", 1),
        observations={"state": np.array([[0, 5], [2, 5]], np.float32)},
        actions=np.array([[0.5]], np.float32),
    )
    second = replace(
        episode("b", 1),
        observations={"state": np.array([[4, 5], [6, 5]], np.float32)},
        actions=np.array([[-0.5]], np.float32),
    )
    found = moments([first, second])
    state, action = found["state"], found[ACTION]
    # 0, 2, 4, 6: mean 3, variance (9 + 1 + 1 + 9) / 4 = 5.
    assert state.count == 4 and state.mean.tolist() == [3, 5] and state.std.tolist() == [pytest.approx(5**0.5), 0]
    assert state.min.tolist() == [0, 5] and state.max.tolist() == [6, 5]
    assert action.count == 2 and action.mean.tolist() == [0] and action.std.tolist() == [0.5]
    # A dimension that never moves is left as it is, not blown up.
    assert state.scale().tolist() == [pytest.approx(5**0.5, rel=1e-6), 1]
    assert state.scale().dtype == np.float32


PARTS = st.lists(
    st.integers(1, 5).flatmap(lambda n: hnp.arrays(np.float64, (n, 2), elements=st.floats(-1e3, 1e3))), min_size=1
)


@given(PARTS)
def test_joined_moments_are_those_of_the_whole(parts: list[np.ndarray]) -> None:
    joined = Moments.of(parts[0])
    for part in parts[1:]:
        joined = joined.joined(Moments.of(part))
    whole = Moments.of(np.concatenate(parts))
    assert joined.count == whole.count
    for name in ("mean", "std", "min", "max"):
        assert np.allclose(getattr(joined, name), getattr(whole, name), rtol=1e-9, atol=1e-4), name
    assert Moments.from_plain(joined.plain()).plain() == joined.plain()


def test_pictures_have_no_moments_and_bad_numbers_are_told() -> None:
    assert set(moments([episode("a", pixels=4)])) == {"state", ACTION}
    bad = episode("bad")
    bad.actions[1] = np.nan
    with pytest.raises(EpisodeError, match="'bad': action holds numbers that are not finite"):
        moments([bad])
    with pytest.raises(EpisodeError, match="no actions"):
        moments([episode("a", 0)])


def test_state_moments_of_a_store(tmp_path: Path) -> None:
    episodes = [episode("a", 5, pixels=4, seed=1), episode("b", 7, pixels=4, seed=2)]
    write_episodes(tmp_path, episodes)
    states = np.concatenate([e.observations["state"] for e in episodes])
    assert state_moments(tmp_path).mean == pytest.approx(states.mean(0, dtype=np.float64))


def made() -> Iterator[Episode]:
    """Successes after 3 and 1 actions, a failure of 2 steps; -1 a step and 0 on success."""
    yield replace(episode("a", 3), metadata={"rejected": 2})
    yield replace(episode("b", 1), metadata={"rejected": 1})
    no = np.zeros(2, np.bool_)
    failure = replace(episode("c", 2, source=Source.FAILURE), success=no, rewards=np.full(2, -1, np.float32))
    yield replace(failure, terminated=False, truncated=True)


def test_the_card_counts_by_task_and_source(tmp_path: Path) -> None:
    write_episodes(tmp_path, made())
    card = describe(tmp_path, gamma=0.5)
    good, bad = card.groups
    assert (good.task, good.source, good.lengths, good.success) == ("open", "demonstration", (3, 1), 1)
    assert (good.positives, good.terminated, good.truncated, good.rejected) == (2, 2, 0, 3)
    # Sums of rewards -2 and 0; discounted -(1 + 0.5) and 0.
    assert (good.returns, good.discounted) == (-1, -0.75)
    assert (bad.source, bad.lengths, bad.success, bad.positives) == ("failure", (2,), 0, 0)
    # A failure goes on for ever: -1 / (1 - 0.5).
    assert (bad.terminated, bad.truncated, bad.returns, bad.discounted) == (0, 1, -2, -2)
    lines = card.markdown().splitlines()
    assert lines[0].startswith("3 episodes, 6 steps, 1 shards, ")
    assert lines[2] == "Observations `state` float32[2]; actions [1]."
    assert lines[6] == (
        "| open | open it | demonstration | 2 | 4 | 1 to 3, median 2 | 1.00 | 0.500 | 2 | 0 | -1.0 | -0.8 | 3 |"
    )
    assert len({line.count("|") for line in lines[4:]}) == 1


def test_a_card_tells_of_pictures(tmp_path: Path) -> None:
    write_episodes(tmp_path, [episode("a", pixels=4)], image_format="jpeg")
    assert "`image` uint8[4x4x3] (JPEG), `state` float32[2]" in describe(tmp_path).markdown()


@pytest.mark.parametrize("gamma", [-0.1, 1.0])
def test_a_discount_without_a_meaning_is_refused(tmp_path: Path, gamma: float) -> None:
    write_episodes(tmp_path, [episode("a")])
    with pytest.raises(EpisodeError, match="gamma must be"):
        describe(tmp_path, gamma)
