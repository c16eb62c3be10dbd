"""Offline first, then online with a share of offline pairs: proportions, marks, and a state that is a cursor."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.buffers.mixer import MixConfig, OfflineOnlineMixer
from align.buffers.offline import FinitePairs
from align.buffers.pairs import PairMixer
from align.types import PairBatch
from rewards.preference_data import PreferenceSet
from rewards.types import ScoredPair
from rollouts.types import Completion, Finish, Message, Origin, Prompt


def pair(name: str, origin: Origin) -> ScoredPair:
    sides = [Completion((t, 2), (), "", Finish.STOP, origin, 0) for t in (5, 6)]
    return ScoredPair(Prompt(name, (Message("user", "q"),)), (1,), sides[0], sides[1], 1.0, 1.0, 0)


class Reader:
    def pair(self, located: Any) -> ScoredPair:
        return pair(located[0], Origin.DATASET)


def offline(count: int, seed: int) -> FinitePairs:
    reader: Any = Reader()
    return FinitePairs(PreferenceSet([(f"off{i}", {}) for i in range(count)], reader, "f"), seed)


def mixer(config: MixConfig, *, pairs: int = 10, seed: int = 0) -> OfflineOnlineMixer:
    online = PairMixer(batch_pairs=config.batch_pairs, replay_ratio=1.0, seed=seed)
    return OfflineOnlineMixer(online, offline(pairs, seed), config)


def online(start: int, count: int) -> list[ScoredPair]:
    return [pair(f"on{i}", Origin.POLICY) for i in range(start, start + count)]


def ids(batches: list[PairBatch]) -> list[str]:
    return [p.prompt.id for batch in batches for p in batch.pairs]


def marked_rightly(batch: PairBatch) -> bool:
    return batch.is_offline == tuple(p.prompt.id.startswith("off") for p in batch.pairs)


def test_the_switch_from_offline_to_online() -> None:
    mix = mixer(MixConfig(batch_pairs=4, offline_steps=2, offline_updates_per_step=2, offline_ratio=0.5))
    shares = []
    for step in (1, 2):
        batches = mix.batches(step)
        assert [len(batch.pairs) for batch in batches] == [4, 4]
        shares += [sum(batch.is_offline) / len(batch.pairs) for batch in batches]
    # Steps 3 and 4 have 8 online pairs, then 8 new and 8 replayed; half as many offline pairs go with them, shared out.
    for step, sizes in ((3, [6, 6]), (4, [6, 6, 6, 6])):
        mix.add(online(8 * step, 8))
        batches = mix.batches(step)
        assert [len(batch.pairs) for batch in batches] == sizes
        assert all(map(marked_rightly, batches))
        shares += [sum(batch.is_offline) / len(batch.pairs) for batch in batches]
    assert shares == [1.0] * 4 + [pytest.approx(1 / 3)] * 6


def test_offline_alone_is_epochs_of_the_data_set() -> None:
    mix = mixer(MixConfig(batch_pairs=4, offline_steps=5), pairs=10)
    batches = [mix.batches(step) for step in range(1, 6)]
    assert [len(b) for b in batches] == [1] * 5
    seen = [id for batch in batches for id in ids(batch)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(f"off{i}" for i in range(10))
    # 10 pairs are new; the third batch of four holds the last two of them.
    assert [batch.fresh for [batch] in batches] == [4, 4, 2, 0, 0]
    assert all(all(batch.is_offline) for [batch] in batches)


def test_an_online_step_with_nothing_to_learn_from_is_no_batch() -> None:
    mix = mixer(MixConfig(batch_pairs=4, offline_steps=1, offline_ratio=1.0))
    mix.batches(1)
    assert mix.batches(2) == []
    mix.add(online(0, 4))
    [batch] = mix.batches(3)
    assert (sum(batch.is_offline), len(batch.pairs), batch.fresh) == (4, 8, 8)


def test_without_a_ratio_the_online_batches_are_the_buffer_s_own() -> None:
    mix, alone = mixer(MixConfig(batch_pairs=4, offline_steps=0)), PairMixer(batch_pairs=4, replay_ratio=1.0, seed=0)
    for step in (1, 2, 3):
        mix.add(online(9 * step, 9))
        alone.add(online(9 * step, 9))
        assert mix.batches(step) == alone.batches(step)


@given(
    st.integers(1, 9),
    st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 2.5]),
    st.lists(st.integers(0, 25), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_the_ratio_holds_over_the_run_and_within_a_step(size: int, ratio: float, counts: list[int], seed: int) -> None:
    mix = mixer(MixConfig(batch_pairs=size, offline_steps=0, offline_ratio=ratio), pairs=7, seed=seed)
    ours = theirs = 0
    for step, count in enumerate(counts, start=1):
        mix.add(online(100 * step, count))
        batches = mix.batches(step)
        offline_counts = [sum(batch.is_offline) for batch in batches]
        ours += sum(len(batch.pairs) for batch in batches) - sum(offline_counts)
        theirs += sum(offline_counts)
        assert theirs == math.floor(ratio * ours)
        assert not batches or max(offline_counts) - min(offline_counts) <= 1
        assert all(map(marked_rightly, batches))
        assert {f"on{100 * step + i}" for i in range(count)} <= set(ids(batches))


@given(st.integers(0, 6), st.integers(1, 3), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99), st.integers(0, 7))
def test_resume_at_any_step_goes_on_identically(
    offline_steps: int, updates: int, ratio: float, seed: int, stop: int
) -> None:
    config = MixConfig(4, offline_steps, updates, ratio)

    def go(mix: OfflineOnlineMixer, first: int, last: int) -> list[list[tuple[list[str], tuple[bool, ...], int]]]:
        steps = []
        for step in range(first, last + 1):
            if step > offline_steps:
                mix.add(online(100 * step, step + 2))
            steps.append([(ids([b]), b.is_offline, b.fresh) for b in mix.batches(step)])
        return steps

    whole, one, other = mixer(config, seed=seed), mixer(config, seed=seed), mixer(config, seed=seed)
    before = go(one, 1, stop)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert before + go(other, stop + 1, 8) == go(whole, 1, 8)


def test_checkpoints_hold_no_offline_pair() -> None:
    mix = mixer(MixConfig(batch_pairs=64, offline_steps=1, offline_ratio=1.0), pairs=500)
    mix.batches(1)
    mix.add(online(0, 3))
    mix.batches(2)
    state = mix.state_dict()
    assert "off" not in repr(state["online"]["pairs"])
    assert state["offline"] == {"position": 67, "pairs": 500}
    assert [p["prompt"] for p in state["online"]["pairs"]] == ["on0", "on1", "on2"]
