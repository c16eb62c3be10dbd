"""Intruder dimensions: directions that an update made important and that the pre-trained matrix did not know.

A low-rank update writes few directions with a large stroke; where they come out on top of a matrix's spectrum without
resembling anything in the old one, the model tends to forget more than its accuracy shows. Source: Shuttleworth et al.,
"LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228, definition 1 and algorithm 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MatrixIntruders:
    """One updated matrix. ``similarities[j]`` belongs to the singular vector with the ``j``-th largest singular value:
    its largest absolute cosine with any singular vector of the matrix before (0..1)."""

    name: str
    similarities: tuple[float, ...]
    intruders: tuple[int, ...]
    """The ranks ``j``, counted from 0, whose similarity is below epsilon."""


@dataclass(frozen=True, slots=True)
class IntruderReport:
    """All updated matrices, in the order of the weights."""

    matrices: tuple[MatrixIntruders, ...]
    top_k: int
    epsilon: float

    @property
    def count(self) -> int:
        """Intruder dimensions of all matrices together."""
        return sum(len(matrix.intruders) for matrix in self.matrices)

    @property
    def matrices_share(self) -> float:
        """Share of the updated matrices that have an intruder (0..1); 0 when nothing was updated."""
        return sum(bool(matrix.intruders) for matrix in self.matrices) / max(len(self.matrices), 1)

    @property
    def highest(self) -> int | None:
        """The smallest rank of any intruder, 0 being the largest singular value; ``None`` without intruders."""
        return min((matrix.intruders[0] for matrix in self.matrices if matrix.intruders), default=None)

    def metrics(self) -> dict[str, float]:
        """``intruder/count`` and ``intruder/matrices_share``."""
        return {"intruder/count": float(self.count), "intruder/matrices_share": self.matrices_share}


def intruder_report(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, top_k: int = 10, epsilon: float = 0.5
) -> IntruderReport:
    """Compares every matrix [m, n] of ``after`` that differs from its namesake in ``before``, one at a time.

    A left singular vector among the ``top_k`` of the updated matrix is an intruder when its absolute cosine with
    *every* left singular vector of the matrix before is below ``epsilon``. Left vectors live where the matrix writes,
    and are what the paper's experiments compare.

    Raises ``ValueError`` when ``before`` lacks a matrix or has it in another shape.
    """
    if top_k < 1 or not 0 < epsilon <= 1:
        raise ValueError(f"top_k must be at least 1 and epsilon in (0, 1], not {top_k} and {epsilon}")
    found = []
    for name, new in after.items():
        if new.ndim != 2:
            continue
        old = before.get(name)
        if old is None or old.shape != new.shape:
            seen = "is missing" if old is None else f"has shape {list(old.shape)}"
            raise ValueError(f"'{name}' {seen} before the update and has shape {list(new.shape)} after it")
        if torch.equal(old, new):
            continue
        similarities = _similarities(old, new, top_k)
        intruders = tuple(rank for rank, value in enumerate(similarities) if value < epsilon)
        found.append(MatrixIntruders(name, similarities, intruders))
    return IntruderReport(tuple(found), top_k, epsilon)


@torch.no_grad()
def _similarities(old: Tensor, new: Tensor, top_k: int) -> tuple[float, ...]:
    """The largest absolute cosine with a left singular vector of ``old``, for the first ``top_k`` ones of ``new``."""
    ours, theirs = _left(new)[:, :top_k], _left(old)
    if not theirs.shape[1]:
        return (0.0,) * ours.shape[1]
    return tuple((ours.T @ theirs).abs().amax(1).tolist())


def _left(matrix: Tensor) -> Tensor:
    """Left singular vectors [m, rank], by falling singular value.

    Those of singular value zero are left out: they are an arbitrary basis of what the matrix never writes.
    """
    left, values, _ = torch.linalg.svd(matrix.float(), full_matrices=False)
    floor = values[:1] * max(matrix.shape) * torch.finfo(values.dtype).eps
    kept: Tensor = left[:, values > floor]
    return kept
