"""Prior preference data as the mixer sees it: batches for ever, from a cursor that is all of the state."""

import random
from array import array
from collections.abc import Mapping
from typing import Any, Protocol

from align.errors import UserError
from align.protocols import Stateful
from rewards.preference_data import LEDGER, Located, PairReader, PreferenceSet, check_not_empty
from rewards.preference_sources import GymPairs, PairSource, RecordStream, name_of, open_records, open_stream
from rewards.types import ScoredPair
from rollouts.prompts import PromptError


class OfflinePairs(Stateful, Protocol):
    """Pairs of a data set in a seeded order, each once an epoch, epoch after epoch."""

    @property
    def ledger(self) -> Mapping[str, int]:
        """How many records became ``pairs``, and how many were left out by cause; a stream counts as it reads."""
        ...

    def take(self, count: int) -> tuple[list[ScoredPair], int]:
        """The next ``count`` pairs, and how many of them are given for the first time."""
        ...


class FinitePairs:
    """Implements :class:`OfflinePairs` for pairs that can be had in any order: every epoch is a permutation of all."""

    def __init__(self, pairs: PreferenceSet, seed: int) -> None:
        self._pairs = pairs
        self._seed = seed
        self._position = 0
        self._order: tuple[int, array[int]] | None = None

    @property
    def ledger(self) -> Mapping[str, int]:
        return self._pairs.ledger

    def take(self, count: int) -> tuple[list[ScoredPair], int]:
        places = range(self._position, self._position + count)
        self._position += count
        return [self._at(place) for place in places], max(0, min(count, len(self._pairs) - places.start))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, "pairs": len(self._pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["pairs"] != len(self._pairs):
            raise UserError(
                f"the preference data has changed: {len(self._pairs)} pairs, and {state['pairs']} when the checkpoint "
                "was written; put the old data back, or start another run (run.dir=runs/new)"
            )
        self._position = state["position"]

    def _at(self, position: int) -> ScoredPair:
        epoch, index = divmod(position, len(self._pairs))
        if self._order is None or self._order[0] != epoch:
            order = array("q", range(len(self._pairs)))
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            self._order = epoch, order
        pair: ScoredPair = self._pairs[self._order[1][index]]
        return pair


class StreamedPairs:
    """Implements :class:`OfflinePairs` for data that is read once an epoch, in order, and never held as a whole.

    The order is mixed within blocks of ``block`` records, each by the seed, the epoch and its own number. The state is
    the place where the current block begins and how far it is used up: a resumed run reads that block again and goes on
    with the very next pair. (The shuffle buffer of ``datasets`` loses its content.)
    """

    def __init__(self, stream: RecordStream, reader: PairReader, *, seed: int, block: int, source: str) -> None:
        self._stream = stream
        self._reader = reader
        self._seed = seed
        self._size = block
        self._source = source
        self._epoch = 0
        self._ledger = dict.fromkeys(LEDGER, 0)
        self._open_block(0)
        self._refuse_empty()

    @property
    def ledger(self) -> Mapping[str, int]:
        return self._ledger

    def take(self, count: int) -> tuple[list[ScoredPair], int]:
        pairs: list[ScoredPair] = []
        fresh = 0
        while len(pairs) < count:
            made = self._next()
            if isinstance(made, ScoredPair):
                pairs.append(made)
                fresh += self._epoch == 0
        return pairs, fresh

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "block": self._number,
            "start": self._start,
            "used": self._used,
            "ledger": dict(self._ledger),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self._stream.load_state_dict(state["start"])
        self._open_block(state["block"])
        if state["used"] > len(self._block):
            raise UserError(
                f"{self._source} has changed since the checkpoint was written; put the old data back, or start another "
                "run (run.dir=runs/new)"
            )
        self._used = state["used"]
        self._ledger = dict(state["ledger"])

    def _next(self) -> ScoredPair | str:
        """What becomes of the next record; records are counted in the first epoch only."""
        while self._used == len(self._block):
            self._open_block(self._number + 1)
            if not self._block:
                check_not_empty(self._ledger, self._source)
                self._epoch += 1
                self._stream.rewind(self._epoch)
                self._open_block(0)
                self._refuse_empty()
        made = self._reader.pair(self._block[self._used])
        self._used += 1
        if self._epoch == 0:
            self._ledger[made if isinstance(made, str) else "pairs"] += 1
        return made

    def _open_block(self, number: int) -> None:
        self._number = number
        self._start = self._stream.state_dict()
        self._block: list[Located] = self._stream.read(self._size)
        random.Random(f"{self._seed}:{self._epoch}:{number}").shuffle(self._block)
        self._used = 0

    def _refuse_empty(self) -> None:
        if not self._block:
            raise PromptError(f"{self._source} holds no preference pairs")


def offline_pairs(
    source: PairSource,
    reader: PairReader,
    *,
    seed: int,
    streaming: bool = False,
    block: int = 1000,
) -> OfflinePairs:
    """A source's pairs. With ``streaming`` nothing but a block of ``block`` records is held; the gym has no streams.

    Raises :class:`rollouts.prompts.PromptError` where the source cannot be read, or holds no pair (a stream finds that
    out when it is read).
    """
    if streaming and not isinstance(source, GymPairs):
        return StreamedPairs(open_stream(source), reader, seed=seed, block=block, source=name_of(source))
    return FinitePairs(PreferenceSet(open_records(source, reader.exclude), reader, name_of(source)), seed)
