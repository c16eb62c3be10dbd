"""The ring of frames: what comes out is what went in, to the last observation, and old frames go first."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.buffers.transitions import BufferFault, TransitionBuffer, normalisation
from rollouts.envs.types import IMAGE, STATE
from tests.align.learners.robots import GAMMA, labelled


def everything(buffer: TransitionBuffer, **options: int) -> dict[str, list[float]]:
    """All transitions, by where they begin."""
    rows = buffer.gather(np.sort(buffer._starts), gamma=GAMMA, **options)
    return {
        "state": rows[f"observation/{STATE}"][:, 0].tolist(),
        "next": rows[f"next_observation/{STATE}"][:, 0].tolist(),
        "reward": rows["reward"].tolist(),
        "discount": rows["discount"].tolist(),
        "return": rows["mc_return"].tolist(),
    }


def approximately(values: list[float]) -> list[float]:
    return pytest.approx(values)  # type: ignore[no-any-return]


def test_a_success_and_a_cut_by_hand() -> None:
    buffer = TransitionBuffer(100, ["open"])
    assert buffer.add(labelled(2, first=0), imitate=True) == 2
    assert buffer.add(labelled(2, success=False, first=10), imitate=False) == 2
    rows = everything(buffer)
    # The last observation of each (2 and 12) is only ever a next one. The cut keeps its bootstrap.
    assert rows["state"] == [0, 1, 10, 11]
    assert rows["next"] == [1, 2, 11, 12]
    assert rows["reward"] == [-1, 0, -1, -1]
    assert rows["discount"] == approximately([0.9, 0, 0.9, 0.9])
    assert rows["return"] == approximately([-1, 0, -10, -10])
    assert buffer.gather(np.sort(buffer._starts), gamma=GAMMA)["imitate"].tolist() == [True, True, False, False]


def test_several_steps_stop_at_the_end_of_the_task_and_at_the_last_observation() -> None:
    buffer = TransitionBuffer(100, ["open"])
    buffer.add(labelled(3, first=0), imitate=False)
    buffer.add(labelled(2, success=False, first=10), imitate=False)
    rows = everything(buffer, n_step=3)
    # -1 - 0.9 + 0 and done; -1 + 0 and done; 0 and done; -1 - 0.9 with two steps' discount; -1 with one's.
    assert rows["reward"] == approximately([-1.9, -1, 0, -1.9, -1])
    assert rows["discount"] == approximately([0, 0, 0, 0.81, 0.9])
    assert rows["next"] == [3, 3, 3, 12, 12]


def test_an_episode_without_steps_adds_nothing() -> None:
    buffer = TransitionBuffer(100, ["open"])
    assert buffer.add(labelled(0), imitate=False) == 0
    assert len(buffer) == 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(10, 40), st.integers(1, 4))
def test_the_ring_holds_the_newest_transitions_whole(lengths: list[int], capacity: int, n: int) -> None:
    buffer = TransitionBuffer(capacity, ["open"])
    frames: list[tuple[float, float, float, float] | None] = []
    first = 0
    for index, length in enumerate(lengths):
        success = index % 2 == 0
        buffer.add(labelled(length, success=success, first=first), imitate=False)
        for t in range(length):
            steps = min(n, length - t)
            done = success and t + steps == length
            paid = -sum(GAMMA**k for k in range(steps)) + (GAMMA ** (steps - 1) if done else 0)
            frames.append((first + t, first + t + steps, paid, 0 if done else GAMMA**steps))
        frames.append(None)
        first += 100
    expected = sorted(frame for frame in frames[-capacity:] if frame)
    rows = everything(buffer, n_step=n)
    got = sorted(zip(rows["state"], rows["next"], rows["reward"], rows["discount"], strict=True))
    assert len(buffer) == len(expected)
    np.testing.assert_allclose(np.array(got).reshape(-1, 4), np.array(expected).reshape(-1, 4), rtol=1e-5)


def test_every_transition_is_drawn() -> None:
    buffer = TransitionBuffer(8, ["open"])
    for first in (0, 10, 20):
        buffer.add(labelled(3, first=first), imitate=False)
    drawn = buffer.gather(buffer.draw(np.random.default_rng(0), (500,)), gamma=GAMMA)
    assert set(drawn[f"observation/{STATE}"][:, 0].tolist()) == {10, 11, 12, 20, 21, 22}


def test_images_are_stored_once_and_as_they_are() -> None:
    buffer = TransitionBuffer(100, ["open"])
    buffer.add(labelled(3, image=True), imitate=False)
    rows = buffer.gather(np.arange(3), gamma=GAMMA)
    assert rows[f"observation/{IMAGE}"].dtype == np.uint8
    assert rows[f"next_observation/{IMAGE}"][:, 0, 0, 0].tolist() == [1, 2, 3]
    assert len(buffer.state_dict()["frames"][f"observation/{IMAGE}"]) == 4


@settings(deadline=None)
@given(st.integers(0, 12))
def test_resume_goes_on_identically(stop: int) -> None:
    def fill(buffer: TransitionBuffer, begin: int, end: int) -> TransitionBuffer:
        for index in range(begin, end):
            buffer.add(labelled(1 + index % 5, success=index % 3 == 0, first=100 * index), imitate=index % 2 == 0)
        return buffer

    whole = fill(TransitionBuffer(20, ["open"]), 0, 12)
    file = io.BytesIO()
    torch.save(fill(TransitionBuffer(20, ["open"]), 0, stop).state_dict(), file)
    file.seek(0)
    other = TransitionBuffer(20, ["open"])
    other.load_state_dict(torch.load(file, weights_only=True))
    fill(other, stop, 12)
    assert len(other) == len(whole)
    draws = [buffer.draw(np.random.default_rng(1), (30,)) for buffer in (whole, other)]
    rows = [b.gather(d, gamma=GAMMA, n_step=2) for b, d in zip((whole, other), draws, strict=True)]
    assert rows[0].keys() == rows[1].keys()
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_faults() -> None:
    with pytest.raises(BufferFault, match="at least 2 frames"):
        TransitionBuffer(1, [])
    buffer = TransitionBuffer(5, ["open"])
    with pytest.raises(BufferFault, match="raise the capacity"):
        buffer.add(labelled(5), imitate=False)
    with pytest.raises(BufferFault, match="no embedding for the instruction 'close'"):
        buffer.add(labelled(2, instruction="close"), imitate=False)
    with pytest.raises(BufferFault, match="holds no states"):
        buffer.states()
    buffer.add(labelled(2), imitate=False)
    with pytest.raises(BufferFault, match="all episodes must have the same observations"):
        buffer.add(labelled(2, image=True), imitate=False)
    with pytest.raises(BufferFault, match="raise the capacity"):
        TransitionBuffer(2, ["open"]).load_state_dict(buffer.state_dict())


def test_normalisation_by_hand() -> None:
    buffer = TransitionBuffer(100, ["open"])
    buffer.add(labelled(2, first=0), imitate=False)
    mean, std = normalisation(buffer.states())
    # The frames 0, 1 and 2: mean 1, variance 2/3.
    assert mean.tolist() == [1, 1, 1]
    assert std.tolist() == approximately([(2 / 3) ** 0.5] * 3)
    assert normalisation(np.ones((4, 2)), floor=0.5)[1].tolist() == [0.5, 0.5]
