"""Power laws that are recovered, and a scaling run of two tiny sizes."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.errors import UserError
from align.polar.config import PolarTraining
from align.polar.power_law import fit_power_law, frontier
from align.polar.scaling import run_scaling, training_flops
from align.tracking.jsonl import read_metrics
from tests.align.polar.polars import triples

POLICIES = ("abcd", "efgh", "ijkl")


@given(
    coefficient=st.floats(0.01, 100),
    exponent=st.floats(-2, 2),
    x=st.lists(st.floats(1e3, 1e12), min_size=3, unique=True),
)
def test_a_power_law_is_recovered(coefficient: float, exponent: float, x: list[float]) -> None:
    if max(x) / min(x) < 1.01:
        return
    law = fit_power_law(x, [coefficient * value**exponent for value in x])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law(x[0]) == pytest.approx(coefficient * x[0] ** exponent, rel=1e-6)
    assert law.interval[0] - 1e-6 <= exponent <= law.interval[1] + 1e-6


def test_the_papers_law_is_recovered_from_its_numbers() -> None:
    law = fit_power_law([50e6, 1e9], [0.42368, 0.37303])
    assert law.exponent == pytest.approx(-0.0425, abs=1e-4) and law.coefficient == pytest.approx(0.9, abs=2e-3)
    assert law.r == pytest.approx(-1) and law.r2 == pytest.approx(1)
    assert law.interval == (-math.inf, math.inf)


def test_slope_and_interval_by_hand() -> None:
    # Logarithms: u = 0, 1, 2 and v = 0, 1, 1. Slope 1/2, intercept 1/6, residuals -1/6, 1/3, -1/6: their squares add
    # up to 1/6, over one degree of freedom; uu = 2, so the standard error is sqrt(1/12), times t(0.975, 1) = 12.706.
    law = fit_power_law([1.0, math.e, math.e**2], [1.0, math.e, math.e])
    assert law.exponent == pytest.approx(0.5) and law.coefficient == pytest.approx(math.exp(1 / 6))
    assert law.interval[1] - law.exponent == pytest.approx(12.706 * math.sqrt(1 / 12))
    # Correlation: uv = 1, uu = 2, vv = 2/3.
    assert law.r == pytest.approx(1 / math.sqrt(4 / 3)) and law.r2 == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 1.0], [1.0, 2.0], "two different x"),
        ([1.0, 2.0], [1.0, 0.0], "above 0"),
        ([1.0, 2.0], [1.0], "as many of both"),
        ([1.0, math.inf], [1.0, 1.0], "finite"),
    ],
)
def test_what_is_no_law_is_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y)


def test_the_frontier_is_the_best_of_every_budget() -> None:
    points = [(1, 0.7), (2, 0.6), (3, 0.65), (2, 0.62), (4, 0.5), (5, 0.5)]
    assert frontier([(float(x), y) for x, y in points]) == [(1.0, 0.7), (2.0, 0.6), (4.0, 0.5)]


def test_operations_of_a_training() -> None:
    assert training_flops(10, 7) == 420 and training_flops(10, 7, frozen=True) == 280


def test_two_sizes_make_a_picture_and_are_not_trained_twice(tiny_model: Path, tmp_path: Path) -> None:
    config = PolarTraining(
        lr=3e-3, batch_size=4, micro_batch_size=4, dtype="float32", log_every=1, checkpoint_every=1, evaluate_every=1
    )
    train, heldout = triples(POLICIES, 8, seed=1), triples(POLICIES, 4, seed=2)
    shown: list[Path] = []
    scaling = run_scaling([2, 1], tiny_model, train, heldout, config, tmp_path, show=shown.append)
    assert [size.layers for size in scaling.sizes] == [1, 2]
    one, two = scaling.sizes
    assert one.tokens == two.tokens
    assert one.parameters - one.non_embedding_parameters == two.parameters - two.non_embedding_parameters == 261 * 64
    # Two updates: a validation after the first, and one of the saved model.
    assert [flops for flops, _ in two.curve][-1] == two.flops == 6 * two.non_embedding_parameters * two.tokens
    assert len(one.curve) == len(two.curve) == 2
    assert shown == [scaling.picture]
    assert scaling.picture.read_bytes().startswith(b"\x89PNG")
    plain = json.loads((tmp_path / "scaling.json").read_text())
    assert plain["by_parameters"]["exponent"] == scaling.by_parameters.exponent  # type: ignore[union-attr]
    assert plain["by_parameters"]["interval"] == [None, None]
    assert [size["loss"] for size in plain["sizes"]] == [one.loss, two.loss]
    # Nothing large is left, and the run once more reads what it has.
    assert not (tmp_path / "layers-01" / "start").exists() and not (tmp_path / "layers-01" / "checkpoints").exists()
    logged = list(read_metrics(tmp_path / "layers-02" / "metrics.jsonl"))
    assert run_scaling([1, 2], tiny_model, train, heldout, config, tmp_path) == scaling
    assert list(read_metrics(tmp_path / "layers-02" / "metrics.jsonl")) == logged


def test_one_size_is_no_law(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two different sizes"):
        run_scaling([1, 1], tiny_model, [], [], PolarTraining(lr=1e-3, batch_size=4), tmp_path)
