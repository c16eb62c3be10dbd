"""Counts of right and wrong calls, and the rates that are said of a success model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Confusion:
    """Frames by what was called (positive: done) and what was true."""

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.true_negatives + other.true_negatives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def total(self) -> int:
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives

    @property
    def false_positive_rate(self) -> float | None:
        """The share of undone frames that were called done; None where there was no undone frame."""
        return share(self.false_positives, self.false_positives + self.true_negatives)

    @property
    def false_negative_rate(self) -> float | None:
        """The share of done frames that were not called so."""
        return share(self.false_negatives, self.false_negatives + self.true_positives)

    @property
    def precision(self) -> float | None:
        """The share of calls that were right."""
        return share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The share of done frames that were called so."""
        return share(self.true_positives, self.false_negatives + self.true_positives)

    @property
    def prevalence(self) -> float | None:
        """The share of frames in which the task is done."""
        return share(self.true_positives + self.false_negatives, self.total)


def confusion(called: ArrayLike, truth: ArrayLike) -> Confusion:
    """Of ``called`` [N] against ``truth`` [N], both bool."""
    c, t = np.asarray(called, np.bool_), np.asarray(truth, np.bool_)
    if c.shape != t.shape:
        raise ValueError(f"{c.shape} calls for {t.shape} truths: there must be one each")
    return Confusion(int((c & t).sum()), int((c & ~t).sum()), int((~c & ~t).sum()), int((~c & t).sum()))


def total(parts: Iterable[Confusion]) -> Confusion:
    """The sum of all."""
    return sum(parts, Confusion())


def share(part: int, whole: int) -> float | None:
    """``part / whole``, or None where there is nothing to take a share of."""
    return part / whole if whole else None
