"""The log-probability benchmark: the two forms compute the same thing, and the command on the tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.bench.logps import Shape, main, naive_logps, packed_logps, random_pairs, render
from align.errors import UserError
from rollouts.models import load_causal_lm


def test_both_forms_give_the_same_values_and_gradients(tiny_model: Path) -> None:
    model: Any = load_causal_lm(tiny_model, torch.float32, "eager")
    # Unequal lengths, so that the naive rows hold padding.
    pairs = [((5, 6, 7), (8, 9, 2), (10, 2)), ((11,), (12,), (13, 14, 15, 16, 2))]
    results = []
    for form in (packed_logps, naive_logps):
        chosen, rejected = form(model, pairs)
        (chosen - rejected).sum().backward()
        results.append((chosen, rejected, model.model.embed_tokens.weight.grad.clone()))
        model.zero_grad()
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, atol=1e-4, rtol=1e-4)


def test_pairs_have_their_shape_and_are_the_same_every_time() -> None:
    pairs = random_pairs(Shape(batch=3, prompt=4, completion=2), vocabulary=50)
    assert [(len(p), len(c), len(r)) for p, c, r in pairs] == [(4, 2, 2)] * 3
    assert pairs == random_pairs(Shape(batch=3, prompt=4, completion=2), vocabulary=50)
    assert len({tuple(c) for _, *both in pairs for c in both}) == 6


def test_ratios_in_the_table_are_by_hand() -> None:
    def arm(median: float, peak: float) -> dict[str, float]:
        return {"median_s": median, "min_s": median, "max_s": median, "peak_memory_gib": peak, "loaded_memory_gib": 0.5}

    shape = {"batch": 8, "prompt": 54, "completion": 26, "arms": {"ours": arm(2.0, 1.0), "naive": arm(5.0, 4.0)}}
    shape["max_difference_nats_a_token"] = 0.002
    text = render(
        {"shapes": [shape], "model": "m", "dtype": "bfloat16", "attention": "eager", "repeats": 3}
        | {"seed": 0, "commit": "abc", "threads": 1, "cpus": 2, "machine": "cpu"}
    )
    assert "naive / ours: 2.50 in time, 4.00 in peak memory; values differ by at most 2.0e-03 nats" in text


def test_the_command_measures_both_forms(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(str(tiny_model), repeats=2, shapes=[Shape(batch=2, prompt=5, completion=3)], dtype="float32") == 0
    report = json.loads((tmp_path / "runs" / "bench" / "logps.json").read_text())
    (shape,) = report["shapes"]
    assert (shape["batch"], shape["prompt"], shape["completion"]) == (2, 5, 3)
    assert set(shape["arms"]) == {"ours", "naive"}
    for arm in shape["arms"].values():
        assert 0 < arm["min_s"] <= arm["median_s"] <= arm["max_s"]
        assert 0.05 < arm["peak_memory_gib"] < 8
    assert shape["max_difference_nats_a_token"] < 1e-4
    assert "2 pairs, prompt 5 tokens" in capsys.readouterr().out


def test_mistakes_are_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats must be 1 or more"):
        main(repeats=0)
    with pytest.raises(UserError, match="no such folder"):
        main(str(tmp_path / "nothing"))
