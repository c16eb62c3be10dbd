"""The paper's fits give the paper's values, and extrapolation is said."""

import math

import pytest

from align.polar.hyperparameters import (
    batch_size,
    learning_rate,
    loss_of_compute,
    loss_of_parameters,
    suggest_batch,
    suggest_lr,
)


@pytest.mark.parametrize(
    ("parameters", "backbone", "tokens", "lr", "batch"),
    [(1.8e9, 2.5e12, 0.94e12, 1.43e-5, 1939.7), (7e9, 4.0e12, 3.6e12, 1.67e-5, 4342.8)],
)
def test_the_papers_models(parameters: float, backbone: float, tokens: float, lr: float, batch: float) -> None:
    assert learning_rate(parameters, backbone, tokens) == pytest.approx(lr, rel=3e-3)
    assert batch_size(parameters, tokens) == pytest.approx(batch, abs=0.05)


def test_the_papers_loss_laws() -> None:
    assert loss_of_parameters(50e6) == pytest.approx(0.424, abs=5e-4)
    assert loss_of_parameters(1e9) == pytest.approx(0.373, abs=5e-4)
    assert loss_of_compute(1e18) == pytest.approx(0.58, abs=5e-3)
    assert loss_of_compute(1e21) == pytest.approx(0.46, abs=5e-3)
    assert loss_of_parameters(50e6) < math.log(2)


def test_within_the_fitted_range_nothing_is_changed() -> None:
    assert suggest_lr(900e6, 2.5e12, 54e9) == (learning_rate(900e6, 2.5e12, 54e9), [])
    assert suggest_batch(900e6, 54e9, pairs=10_000_000) == (round(batch_size(900e6, 54e9)), [])


def test_far_outside_the_clamps_are_said() -> None:
    # 135M parameters after 2T tokens, and 10M tokens of 40,000 pairs: the law would take 3.3e-7.
    lr, [note] = suggest_lr(135e6, 2e12, 10e6)
    assert lr == 5e-6 and "learning rate 3.31e-07 lies outside" in note
    # 31.9032 * 128.7 ** 0.06944 * 0.009313 ** 0.52997 = 3.75.
    batch, [note] = suggest_batch(135e6, 10e6, pairs=40_000)
    assert batch == 4 and "batch of 4 pairs lies outside" in note
    batch, notes = suggest_batch(10e6, 100, pairs=1)
    assert batch == 1 and "this one has 10.0M" in notes[0]
    batch, [note] = suggest_batch(900e6, 54e9, pairs=100)
    assert batch == 100 and "cannot be had from 100" in note


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        suggest_lr(1e6, 0, 1)
    with pytest.raises(ValueError, match="above 0"):
        suggest_batch(1e6, 1, 0)
