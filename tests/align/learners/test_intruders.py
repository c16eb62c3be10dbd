"""Intruder dimensions of matrices whose singular vectors are known by construction."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.learners.intruders import intruder_report

SPECTRUM = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])


def tall() -> Tensor:
    """[8, 6] with left singular vectors e0..e5: nothing is written to e6 and e7."""
    return torch.cat([torch.diag(SPECTRUM), torch.zeros(2, 6)])


def unit(size: int, index: int) -> Tensor:
    return torch.eye(size)[index]


def test_a_large_rank_one_update_outside_the_spectrum_is_found() -> None:
    # The last column becomes e5 + 20 e6: singular value sqrt(401), the largest, with the left vector
    # (e5 + 20 e6) / sqrt(401), whose cosine with e5 is 1 / sqrt(401). The others stay e0..e4.
    before = {"w": tall(), "same": tall(), "bias": torch.zeros(6)}
    after = {"w": tall() + 20 * torch.outer(unit(8, 6), unit(6, 5)), "same": tall(), "bias": torch.ones(6)}
    report = intruder_report(before, after)
    (matrix,) = report.matrices
    assert (matrix.name, matrix.intruders) == ("w", (0,))
    assert matrix.similarities == pytest.approx([1 / math.sqrt(401), 1, 1, 1, 1, 1], abs=1e-5)
    assert (report.count, report.matrices_share, report.highest) == (1, 1.0, 0)
    assert report.metrics() == {"intruder/count": 1.0, "intruder/matrices_share": 1.0}


def test_a_direction_spread_over_the_whole_spectrum_is_an_intruder_too() -> None:
    # A full square matrix: every direction is a mixture of its singular vectors. The new one, (1, ..., 1) / 4 in 16
    # dimensions, has the cosine 1/4 with each; an epsilon below that does not see it.
    before = {"w": torch.diag(torch.linspace(1.0, 0.1, 16))}
    after = {"w": before["w"] + 1e4 * torch.outer(torch.full((16,), 0.25), unit(16, 3))}
    report = intruder_report(before, after)
    assert report.matrices[0].similarities[0] == pytest.approx(0.25, abs=1e-3)
    assert report.highest == 0
    assert 0 not in intruder_report(before, after, epsilon=0.2).matrices[0].intruders


def test_the_rank_of_an_intruder_is_that_of_its_singular_value() -> None:
    # The column of the 1 becomes 2.5 e7, which stands between 3 and 2: the spectrum is 6, 5, 4, 3, 2.5, 2.
    after = tall()
    after[5, 5], after[7, 5] = 0.0, 2.5
    report = intruder_report({"w": tall()}, {"w": after})
    assert (report.matrices[0].intruders, report.highest) == ((4,), 4)
    assert intruder_report({"w": tall()}, {"w": after}, top_k=4).count == 0


@given(degrees=st.floats(0, 90).filter(lambda x: abs(x - 60) > 0.5))
def test_the_threshold_is_the_cosine(degrees: float) -> None:
    # The first left vector turns out of the spectrum by an angle; its cosine with what it was is that angle's, and
    # epsilon 1/2 is 60 degrees.
    angle = math.radians(degrees)
    turn = torch.eye(8)
    turn[0, 0] = turn[6, 6] = math.cos(angle)
    turn[6, 0], turn[0, 6] = math.sin(angle), -math.sin(angle)
    report = intruder_report({"w": tall()}, {"w": turn @ tall() + 1e-7})
    assert report.count == (degrees > 60)


def test_scaling_has_none() -> None:
    report = intruder_report({"w": tall()}, {"w": 3 * tall()})
    assert [matrix.intruders for matrix in report.matrices] == [()]
    assert (report.count, report.matrices_share, report.highest) == (0, 0.0, None)


def test_a_small_dense_change_has_none() -> None:
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    report = intruder_report({"w": tall()}, {"w": tall() + 0.01 * noise})
    assert len(report.matrices) == 1
    # First order: vectors i and j mix by at most noise / gap, and all gaps of the spectrum are 1.
    assert min(report.matrices[0].similarities) > 0.99
    assert report.count == 0


def test_the_share_counts_updated_matrices_only() -> None:
    before = {"a": tall(), "b": tall(), "c": tall()}
    after = {"a": tall() + 20 * torch.outer(unit(8, 7), unit(6, 0)), "b": 2 * tall(), "c": tall()}
    report = intruder_report(before, after)
    assert (report.matrices_share, [matrix.name for matrix in report.matrices]) == (0.5, ["a", "b"])
    nothing = intruder_report(before, before)
    assert (nothing.count, nothing.matrices_share, nothing.highest) == (0, 0.0, None)


def test_a_matrix_that_was_zero_knew_no_direction() -> None:
    report = intruder_report({"w": torch.zeros(4, 3)}, {"w": torch.outer(unit(4, 1), unit(3, 0))})
    assert report.matrices[0].similarities == (0.0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'w' is missing before the update"):
        intruder_report({}, {"w": tall()})
    with pytest.raises(ValueError, match=r"'w' has shape \[6, 8\] before the update and has shape \[8, 6\]"):
        intruder_report({"w": tall().T}, {"w": tall()})
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        intruder_report({}, {}, top_k=0)
