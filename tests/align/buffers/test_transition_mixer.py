"""Offline, then online: how many batches, of what, in which proportion, and exactly again after a resume."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.buffers.transition_mixer import TransitionMixConfig, TransitionMixer
from align.buffers.transitions import BufferFault
from align.types import TransitionBatch
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import STATE, Source
from tests.align.learners.robots import ACTIONS, GAMMA, STATES, labelled

WORDS = {"open": np.array([1.0, 0.0]), "close": np.array([0.0, 1.0])}


def config(**changes: Any) -> TransitionMixConfig:
    plain: dict[str, Any] = {"offline_steps": 0, "batch_size": 8, "gamma": GAMMA}
    return TransitionMixConfig(**(plain | changes))


def offline(count: int = 3, steps: int = 4) -> list[LabelledEpisode]:
    sources = (Source.DEMONSTRATION, Source.FAILURE, Source.PRIOR)
    return [
        labelled(steps, source=sources[i % 3], success=i % 3 != 1, first=1000 + 100 * i, instruction="open")
        for i in range(count)
    ]


def online(index: int, steps: int = 4, **changes: Any) -> LabelledEpisode:
    return labelled(steps, first=10000 + 100 * index, instruction="close", version=index, **changes)


def mixer(data: list[LabelledEpisode], **changes: Any) -> TransitionMixer:
    return TransitionMixer(data, WORDS, config(**changes))


def states(batch: TransitionBatch) -> list[float]:
    values: list[float] = batch.observations[STATE][:, 0].tolist()
    return values


def test_offline_steps_are_a_fixed_number_of_prior_batches() -> None:
    mix = mixer(offline(), offline_steps=2, offline_updates_per_step=5)
    for step in (1, 2):
        batches = mix.batches(step)
        assert len(batches) == 5
        for batch in batches:
            assert len(batch) == 8 and bool(batch.is_offline.all()) and batch.step == step
            assert all(1000 <= state < 2000 for state in states(batch))


def test_online_steps_make_updates_for_each_new_decision() -> None:
    mix = mixer(offline(), utd=0.75)
    mix.add([online(0, 4)])
    assert len(mix.batches(1)) == 3
    assert len(mix.batches(2)) == 0
    # 0.75 + 0.75 + 0.75: nothing, one, one.
    counts = []
    for step in (3, 4, 5):
        mix.add([online(step, 1)])
        counts.append(len(mix.batches(step)))
    assert counts == [0, 1, 1]


def test_nothing_is_learned_before_training_starts_and_nothing_is_owed_for_it() -> None:
    mix = mixer(offline(), start_training=6)
    mix.add([online(0, 4)])
    assert len(mix.batches(1)) == 0
    mix.add([online(1, 4)])
    assert len(mix.batches(2)) == 4


def test_a_mixed_batch_is_prior_data_first_and_says_what_is_what() -> None:
    mix = mixer(offline(), offline_ratio=0.25)
    mix.add([online(3)])
    batch = mix.batches(1)[0]
    assert batch.is_offline.tolist() == [True] * 2 + [False] * 6
    assert all((state < 2000) == prior for state, prior in zip(states(batch), batch.is_offline.tolist(), strict=True))
    assert batch.instructions.tolist() == [[1, 0]] * 2 + [[0, 1]] * 6
    assert batch.policy_versions[2:].tolist() == [3] * 6
    assert batch.actions.shape == (8, ACTIONS) and batch.observations[STATE].shape == (8, STATES)
    assert batch.discounts.dtype == batch.rewards.dtype == batch.mc_returns.dtype == torch.float32


def test_what_may_be_imitated() -> None:
    data = offline()
    seen: dict[bool, set[float]] = {True: set(), False: set()}
    for batch in mixer(data, offline_steps=1, offline_updates_per_step=30).batches(1):
        for state, imitate in zip(states(batch), batch.imitate.tolist(), strict=True):
            seen[imitate].add(100 * (state // 100))
    # Demonstrations and prior successes, never the failures.
    assert seen == {True: {1000, 1200}, False: {1100}}
    own = [online(0), online(1, success=False)]
    for ask, expected in ((False, set()), (True, {10000})):
        mix = mixer([], imitate_successes=ask, utd=8)
        mix.add(own)
        rows = [(s, i) for b in mix.batches(1) for s, i in zip(states(b), b.imitate.tolist(), strict=True)]
        assert {100 * (s // 100) for s, i in rows if i} == expected


@pytest.mark.parametrize(("prior", "expected"), [(3, 6), (1, 4), (0, 0)])
def test_proportional_goes_by_the_sizes(prior: int, expected: int) -> None:
    # 12, 4 and 0 prior transitions beside 4 online: 8 * 12 / 16, 8 * 4 / 8, none.
    mix = mixer(offline(prior), offline_ratio="proportional")
    mix.add([online(0)])
    assert all(int(batch.is_offline.sum()) == expected for batch in mix.batches(1))


def test_without_prior_data_all_is_online() -> None:
    mix = mixer([])
    assert len(mix.batches(1)) == 0
    mix.add([online(0)])
    assert all(not bool(batch.is_offline.any()) for batch in mix.batches(2))


def test_without_language_embeddings_are_empty() -> None:
    mix = TransitionMixer(offline(), None, config(offline_steps=1), tasks=["open", "close"])
    assert mix.batches(1)[0].instructions.shape == (8, 0)


def test_batches_are_a_sequence_that_can_be_read_twice() -> None:
    mix = mixer(offline())
    mix.add([online(0)])
    batches = mix.batches(1)
    assert [states(b) for b in batches] == [states(batches[i]) for i in range(len(batches))]
    assert [states(b) for b in batches[1:3]] == [states(batches[1]), states(batches[2])]
    with pytest.raises(IndexError):
        batches[len(batches)]


@given(st.floats(0, 3), st.lists(st.integers(0, 9), min_size=1, max_size=15))
def test_updates_keep_their_ratio_to_decisions_over_the_run(utd: float, lengths: list[int]) -> None:
    mix = mixer([], utd=utd)
    made = decisions = 0
    for step, length in enumerate(lengths, start=1):
        mix.add([online(step, length)])
        made += len(mix.batches(step))
        decisions += length
        assert made == pytest.approx(math.floor(utd * decisions + 1e-9), abs=1)
        assert made <= utd * decisions + 1e-6


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.3]), st.sampled_from([0.0, 0.5]))
def test_resume_at_any_step_goes_on_identically(stop: int, offline_steps: int, utd: float, ratio: float) -> None:
    options = {"offline_steps": offline_steps, "utd": utd, "offline_ratio": ratio, "capacity": 30}

    def go(mix: TransitionMixer, first: int, last: int) -> list[list[float]]:
        rows = []
        for step in range(first, last + 1):
            if step > offline_steps:
                mix.add([online(step, 1 + step % 5)])
            rows += [states(b) + b.rewards.tolist() + b.policy_versions.tolist() for b in mix.batches(step)]
        return rows

    whole, one, other = (mixer(offline(), **options) for _ in range(3))
    before = go(one, 1, stop)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert before + go(other, stop + 1, 7) == go(whole, 1, 7)


def test_checkpoints_hold_no_prior_data_and_know_how_much_there_was() -> None:
    mix = mixer(offline())
    mix.add([online(0)])
    state = mix.state_dict()
    assert state["online"]["frames"][f"observation/{STATE}"].min() >= 10000
    with pytest.raises(BufferFault, match="began with 12 transitions of prior data, there are 4 now"):
        mixer(offline(1)).load_state_dict(state)


def test_faults() -> None:
    with pytest.raises(BufferFault, match="offline steps need prior data"):
        mixer([], offline_steps=1)
    with pytest.raises(BufferFault, match="offline_ratio is a share"):
        config(offline_ratio=1.5)
    with pytest.raises(BufferFault, match="n_step"):
        config(n_step=0)
    with pytest.raises(BufferFault, match="no embedding"):
        mixer([]).add([labelled(2, instruction="lift")])
