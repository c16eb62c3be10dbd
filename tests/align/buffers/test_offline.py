"""Offline pairs: every epoch gives each pair once, and a cursor is enough to go on with the very next one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.buffers.offline import FinitePairs, OfflinePairs, StreamedPairs, offline_pairs
from rewards.preference_data import Located, PairReader, PreferenceSet, ReadConfig
from rewards.preference_sources import FilePairs, GymPairs, JsonlPairs, PairSource
from rewards.types import ScoredPair
from rollouts.chat import ChatRenderer
from rollouts.models import load_tokenizer
from rollouts.prompts import PromptError
from rollouts.types import Completion, Finish, Message, Origin, Prompt


class Reader:
    """A reader of records ``{"n": …}`` that leaves out the numbers in ``bad``; it renders nothing, so it is quick."""

    exclude: frozenset[str] = frozenset()

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.bad = bad

    def pair(self, located: Located) -> ScoredPair | str:
        n = located[1]["n"]
        sides = [Completion((t, 2), (), "", Finish.STOP, Origin.DATASET, 0) for t in (5, 6)]
        pair = ScoredPair(Prompt(str(n), (Message("user", "q"),)), (1,), sides[0], sides[1], 1.0, 1.0, 0)
        return "too_long" if n in self.bad else pair


class Stream:
    """``count`` records ``{"n": …}`` from memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.at = 0

    def read(self, count: int) -> list[Located]:
        start, self.at = self.at, min(self.count, self.at + count)
        return [(f"f:{n}", {"n": n}) for n in range(start, self.at)]

    def rewind(self, epoch: int) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def finite(count: int, seed: int = 0, bad: frozenset[int] = frozenset()) -> FinitePairs:
    reader: Any = Reader(bad)
    return FinitePairs(PreferenceSet([(f"f:{n}", {"n": n}) for n in range(count)], reader, "f"), seed)


def streamed(count: int, seed: int = 0, bad: frozenset[int] = frozenset(), block: int = 4) -> StreamedPairs:
    reader: Any = Reader(bad)
    return StreamedPairs(Stream(count), reader, seed=seed, block=block, source="f")


def numbers(pairs: list[ScoredPair]) -> list[int]:
    return [int(pair.prompt.id) for pair in pairs]


KINDS = st.sampled_from([finite, streamed])
BAD = st.frozensets(st.integers(0, 11), max_size=11)


@given(KINDS, st.integers(12, 30), st.integers(0, 99), BAD, st.lists(st.integers(0, 17), max_size=6))
def test_every_epoch_is_a_permutation_and_resuming_changes_nothing(
    kind: Any, count: int, seed: int, bad: frozenset[int], takes: list[int]
) -> None:
    good = sorted(set(range(count)) - bad)
    whole, _ = kind(count, seed, bad).take(3 * len(good))
    epochs = [numbers(whole[i * len(good) : (i + 1) * len(good)]) for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [good] * 3
    one, taken, fresh = kind(count, seed, bad), [], 0
    for take in takes:
        pairs, new = one.take(take)
        taken += pairs
        fresh += new
        state = json.loads(json.dumps(one.state_dict()))
        one = kind(count, seed, bad)
        one.load_state_dict(state)
    more, _ = one.take(3 * len(good))
    assert numbers([*taken, *more])[: len(whole)] == numbers(whole)
    assert fresh == min(len(taken), len(good))


@given(KINDS, st.integers(0, 99))
def test_epochs_and_seeds_have_orders_of_their_own(kind: Any, seed: int) -> None:
    # Two of 24! orders are the same by chance next to never; of the stream's (4!)^6 = 2e8 neither.
    pairs, _ = kind(24, seed).take(48)
    other, _ = kind(24, seed + 100).take(24)
    assert numbers(pairs[:24]) not in (numbers(pairs[24:]), numbers(other), list(range(24)))


def test_a_stream_mixes_within_its_blocks_only() -> None:
    pairs, _ = streamed(10, block=4).take(10)
    got = numbers(pairs)
    assert [sorted(got[:4]), sorted(got[4:8]), sorted(got[8:])] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_records_are_counted_once() -> None:
    one = streamed(10, bad=frozenset({1, 2}))
    assert one.ledger == {"pairs": 0, "too_long": 0, "identical": 0, "heldout": 0}
    one.take(30)
    assert one.ledger == {"pairs": 8, "too_long": 2, "identical": 0, "heldout": 0}
    other = streamed(10, bad=frozenset({1, 2}))
    other.load_state_dict(one.state_dict())
    assert other.ledger == one.ledger
    assert finite(10, bad=frozenset({1, 2})).ledger == one.ledger


def test_nothing_to_give_is_an_error() -> None:
    everything = frozenset(range(5))
    with pytest.raises(PromptError, match=r"f holds no preference pairs that can be used \(5 too long\)"):
        streamed(5, bad=everything).take(1)
    with pytest.raises(PromptError, match="f holds no preference pairs"):
        streamed(0)


def test_data_that_changed_under_a_checkpoint_is_an_error() -> None:
    one = finite(10)
    one.take(3)
    with pytest.raises(ValueError, match=r"has changed: 9 pairs, and 10 when the checkpoint was written; put the old"):
        finite(9).load_state_dict(one.state_dict())
    other = streamed(10)
    other.take(8)
    with pytest.raises(ValueError, match="f has changed since the checkpoint"):
        streamed(5).load_state_dict(other.state_dict())


def rows(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    lines = [{"prompt": f"What is {i} + 1?", "chosen": f"{i + 1}", "rejected": f"{i + 2}"} for i in range(20)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "files", "jsonl streamed", "files streamed", "gym"])
def test_files_through_the_tokenizer(
    kind: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = str(rows(tmp_path))
    source: PairSource = JsonlPairs(path) if kind.startswith("jsonl") else FilePairs(path)
    if kind == "gym":
        source = GymPairs("chain_sum", size=20, seed=1)
    reader = PairReader(ChatRenderer(load_tokenizer(tiny_model)), ReadConfig())

    def build() -> OfflinePairs:
        return offline_pairs(source, reader, seed=3, streaming="streamed" in kind, block=8)

    one = build()
    assert isinstance(one, StreamedPairs) == ("streamed" in kind)
    assert len({pair.prompt.id for pair in one.take(20)[0]}) == 20
    one.take(7)
    state = json.dumps(one.state_dict())
    assert len(state) < 600  # a cursor, not 20 pairs
    other = build()
    other.load_state_dict(json.loads(state))
    assert one.take(30) == other.take(30)
    assert one.ledger["pairs"] == 20
