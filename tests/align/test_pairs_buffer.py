"""The cumulative buffer: every new pair once, old ones replayed, nothing lost on resume."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from align.buffers.pairs import PairMixer
from rewards.types import ScoredPair
from rollouts.types import Completion, Finish, Message, Origin, Prompt


def pair(i: int, origin: Origin = Origin.REFERENCE) -> ScoredPair:
    def side(t: int, origin: Origin) -> Completion:
        return Completion((t, 2), (-0.5, -0.25), "x", Finish.STOP, origin, 3)

    prompt = Prompt(f"p{i}", (Message("user", "q"),), "ref", "ans", {"task": "t"})
    return ScoredPair(prompt, (1, i), side(5, Origin.POLICY), side(6, origin), 1.0, 0.9, i, target=0.8)


def plain(pair: ScoredPair) -> ScoredPair:
    """The pair as a checkpoint keeps it: a prompt's metadata is for verifiers of fresh samples only."""
    return replace(pair, prompt=replace(pair.prompt, metadata={}))


def test_a_checkpoint_without_targets_held_hard_labels() -> None:
    mixer = PairMixer(batch_pairs=1, replay_ratio=0.0, seed=0)
    mixer.add([pair(0)])
    state = mixer.state_dict()
    del state["pairs"][0]["target"]
    mixer.load_state_dict(state)
    [batch] = mixer.batches(1)
    assert [p.target for p in batch.pairs] == [1.0]


def ids(pairs: tuple[ScoredPair, ...]) -> list[str]:
    return [p.prompt.id for p in pairs]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(0, 99),
)
def test_every_new_pair_is_seen_once_in_its_step(counts: list[int], size: int, ratio: float, seed: int) -> None:
    mixer, total = PairMixer(batch_pairs=size, replay_ratio=ratio, seed=seed), 0
    for step, count in enumerate(counts, start=1):
        new = [f"p{total + i}" for i in range(count)]
        mixer.add([pair(total + i) for i in range(count)])
        batches = mixer.batches(step)
        seen = [id for batch in batches for id in ids(batch.pairs)]
        assert len(seen) == len(set(seen))
        assert set(new) <= set(seen)
        assert sum(batch.fresh for batch in batches) == count
        assert len(seen) - count <= max(round(ratio * max(count, size // 2)), 0)
        if batches:
            sizes = [len(batch.pairs) for batch in batches]
            assert max(sizes) - min(sizes) <= 2
            assert all(set(ids(b.pairs[: b.fresh])) <= set(new) for b in batches)
        total += count


def test_nothing_to_learn_from_is_no_batch() -> None:
    assert PairMixer(batch_pairs=4, replay_ratio=1.0, seed=0).batches(1) == []


def test_capacity_keeps_the_newest() -> None:
    mixer = PairMixer(batch_pairs=100, replay_ratio=9.0, capacity=3, seed=0)
    mixer.add([pair(0), pair(1)])
    mixer.batches(1)
    mixer.add([pair(2), pair(3)])
    [batch] = mixer.batches(2)
    assert (sorted(ids(batch.pairs)), batch.fresh) == (["p1", "p2", "p3"], 2)


def test_offline_pairs_are_marked() -> None:
    mixer = PairMixer(batch_pairs=4, replay_ratio=0.0, seed=0)
    offline = pair(1)
    both = [Completion((t, 2), (), "x", Finish.STOP, Origin.DATASET, 0) for t in (5, 6)]
    mixer.add([pair(0), ScoredPair(offline.prompt, (1,), both[0], both[1], 1.0, 1.0, 0)])
    [batch] = mixer.batches(1)
    assert dict(zip(ids(batch.pairs), batch.is_offline, strict=True)) == {"p0": False, "p1": True}


def test_resume_continues_with_the_same_batches_and_provenance(tmp_path: object) -> None:
    one = PairMixer(batch_pairs=4, replay_ratio=1.0, seed=7)
    one.add([pair(i) for i in range(9)])
    one.batches(1)
    one.add([pair(i, Origin.POLICY) for i in range(9, 14)])
    import io

    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other = PairMixer(batch_pairs=4, replay_ratio=1.0, seed=7)
    other.load_state_dict(torch.load(file, weights_only=True))
    ours, theirs = one.batches(2), other.batches(2)
    assert [ids(b.pairs) for b in ours] == [ids(b.pairs) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert [plain(p) for p in a.pairs] == [plain(p) for p in b.pairs]
