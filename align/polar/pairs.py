"""Triples as pairs of token sequences, and the order in which a training goes through them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import UserError
from rewards.polar.encoding import PolarEncoder
from rewards.polar.types import Triple

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pairs:
    """``chosen`` and ``rejected`` [N] of one prompt and reference each, as the model reads them.

    Of ``truncated`` pairs a part was cut to fit; of ``identical`` ones both sides are the same tokens, which nothing
    can be learnt from (their loss is ln 2 for ever).
    """

    chosen: Sequence[Ids]
    rejected: Sequence[Ids]
    truncated: int
    identical: int

    def __len__(self) -> int:
        return len(self.chosen)

    def tokens(self) -> list[int]:
        """Tokens of each pair, both sequences together, without padding."""
        return [len(c) + len(r) for c, r in zip(self.chosen, self.rejected, strict=True)]

    def lengths(self) -> list[int]:
        """The longer sequence of each pair: what a pass is padded to."""
        return [max(len(c), len(r)) for c, r in zip(self.chosen, self.rejected, strict=True)]

    def digest(self) -> str:
        """A hash of all tokens in order."""
        total = hashlib.sha256()
        for sequence in (*self.chosen, *self.rejected):
            total.update(len(sequence).to_bytes(4, "little") + sequence.tobytes())
        return total.hexdigest()


def encode_pairs(triples: Sequence[Triple], encoder: PolarEncoder, what: str) -> Pairs:
    """The pairs of ``triples``, in order. Raises ``UserError`` where there are none; ``what`` names them in it."""
    chosen, rejected, truncated, identical = [], [], 0, 0
    for triple in triples:
        one, other = encoder.encode_triple(triple)
        chosen.append(np.array(one.ids, dtype=np.int32))
        rejected.append(np.array(other.ids, dtype=np.int32))
        truncated += bool(one.truncated or other.truncated)
        identical += one.ids == other.ids
    if not chosen:
        raise UserError(f"no triples to {what}: give at least one")
    return Pairs(chosen, rejected, truncated, identical)


def training_order(lengths: Sequence[int], *, batch: int, micro: int, epochs: float, seed: int) -> list[int]:
    """Which pair comes when: ``epochs`` random permutations behind each other, cut into updates of ``batch``.

    The pairs of an update are sorted by length, the longest first, before they are cut into passes of ``micro``. A
    pass then holds little padding, while the update is the same mean over the same pairs; sorting over more than an
    update, as transformers' ``group_by_length`` does, would put pairs of one length, and so of one kind, into one
    update. The last pass is filled up from the next permutation, or its pairs would weigh more than others.
    """
    pairs = len(lengths)
    total = math.ceil(math.ceil(epochs * pairs) / micro) * micro
    stream: list[int] = []
    epoch = 0
    while len(stream) < total:
        stream += np.random.default_rng((seed, epoch)).permutation(pairs).tolist()
        epoch += 1
    order: list[int] = []
    for start in range(0, total, batch):
        update = stream[start : min(start + batch, total)]
        order += sorted(update, key=lambda index: -lengths[index])
    return order
