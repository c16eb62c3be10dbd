"""Trainings of the tiny model: files, numbers, adapters, and going on after a kill."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.errors import UserError
from align.learners.adapters import AdapterConfig
from align.polar.config import PolarTraining
from align.polar.pairs import encode_pairs
from align.polar.train import PolarOutcome
from align.polar.trainer import NAMES, build_trainer, count_parameters, make_plan
from align.polar.validate import validate
from align.supervised import Checkpoints
from align.tracking.metrics import undocumented
from rewards.polar.model import build_polar, load_encoder, load_polar, polar_settings, resolve_polar
from rewards.polar.shipped import ship
from rollouts.models import resolve
from tests.align.polar.polars import HELDOUT, TRAIN, go, numbers, settings


def test_small_passes_add_up_to_one_update(scoring: Path, tmp_path: Path) -> None:
    common = {"epochs": 1.0, "evaluate_every": 0, "checkpoint_every": 0, "warmup_ratio": 0.0}
    whole = go(settings(micro_batch_size=4, **common), scoring, tmp_path / "whole")
    parts = go(settings(micro_batch_size=1, **common), scoring, tmp_path / "parts")
    one, other = load_file(whole.model / "model.safetensors"), load_file(parts.model / "model.safetensors")
    begin = load_file(scoring / "model.safetensors")
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=2e-4), name
    assert any(not torch.allclose(tensor, begin[name], atol=2e-3) for name, tensor in one.items())


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(start: Path, tmp_path: Path) -> None:
    check_kill(settings(), start, tmp_path)


def test_with_an_adapter_too(start: Path, tmp_path: Path) -> None:
    whole, resumed = check_kill(settings(lora=AdapterConfig(rank=2, alpha=8, dropout=0.1)), start, tmp_path)
    assert whole.adapter and resumed.adapter
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole.adapter, resumed.adapter))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def check_kill(config: PolarTraining, start: Path, folder: Path) -> tuple[PolarOutcome, PolarOutcome]:
    whole, killed = go(config, start, folder / "whole"), folder / "killed"
    # 12 pairs in batches of 4, twice: 6 updates. The kill at 5 falls between the checkpoints of 4 and 6, behind the
    # validation at 3.
    with pytest.raises(KeyboardInterrupt):
        go(config, start, killed, kill_at=5)
    assert not (killed / "model").exists()
    resumed = go(config, start, killed)
    assert dataclasses.replace(resumed, model=whole.model, adapter=whole.adapter) == whole
    assert whole.steps == 6 and whole.pairs == 12
    assert numbers(killed) == numbers(folder / "whole")
    assert [step for step, _ in numbers(killed)] == list(range(7))
    one, other = load_file(whole.model / "model.safetensors"), load_file(resumed.model / "model.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    # Once more: the result is read, nothing is trained or logged.
    assert go(config, start, killed) == resumed
    assert numbers(killed) == numbers(folder / "whole")
    return whole, resumed


def test_a_run_leaves_its_numbers_under_our_names(start: Path, tmp_path: Path) -> None:
    outcome = go(settings(), start, tmp_path)
    logged = numbers(tmp_path)
    assert undocumented(name for _, metrics in logged for name in metrics) == []
    assert logged[0][1]["eval/loss"] == pytest.approx(math.log(2))
    assert set(logged[1][1]) == {*NAMES.values(), "data/tokens"}
    assert [step for step, metrics in logged if "eval/accuracy" in metrics] == [0, 3, 6]
    assert [v.step for v in outcome.validations] == [0, 3, 6]
    pairs = encode_pairs(TRAIN, load_encoder(start), "x")
    # Twice through all pairs: every token of both sequences, no padding.
    assert outcome.tokens == outcome.validations[-1].tokens == 2 * sum(pairs.tokens())
    assert logged[-1][1]["data/tokens"] == outcome.tokens
    # A warm-up of ceil(0.03 * 6) = 1 update, then a cosine over 5 that stops at a tenth.
    rates = [metrics["optim/lr"] for _, metrics in logged[1:]]
    cosine = [3e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 5))) for k in range(5)]
    assert rates == pytest.approx([0.0, *cosine])
    assert polar_settings(outcome.model) == polar_settings(start)
    # The saved model is the one that was validated last.
    again = validate(
        load_polar(outcome.model, torch.float32), encode_pairs(HELDOUT, load_encoder(outcome.model), "x"), 2
    )
    assert again.loss == outcome.validations[-1].loss != pytest.approx(math.log(2), abs=1e-3)


def test_an_adapter_trains_the_head_and_two_rows_and_can_be_shipped(tmp_path: Path) -> None:
    start = build_polar(resolve("tiny:0", tmp_path), tmp_path / "start")
    outcome = go(settings(lora=AdapterConfig(rank=2, alpha=8), lr=1e-2), start, tmp_path / "run")
    before, after = load_file(start / "model.safetensors"), load_file(outcome.model / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert "score.weight" in changed and "model.embed_tokens.weight" in changed
    assert all("_proj" in name for name in changed - {"score.weight", "model.embed_tokens.weight"})
    rows = (after["model.embed_tokens.weight"] != before["model.embed_tokens.weight"]).any(dim=1).nonzero()
    assert rows.flatten().tolist() == [259, 260]  # the two special tokens behind 256 bytes and 3 control tokens
    assert outcome.adapter is not None
    ship(outcome.adapter, tmp_path / "weights" / "mine", base="tiny:0")
    shipped = load_polar(resolve_polar("polar:mine", tmp_path, tmp_path / "weights"), torch.float32)
    pairs = encode_pairs(HELDOUT, load_encoder(start), "x")
    found = validate(shipped, pairs, 2)
    # bfloat16 rounds the body to three digits.
    assert found.loss == pytest.approx(outcome.validations[-1].loss, abs=0.02)


def test_a_second_training_goes_on_with_the_first_ones_adapter(tmp_path: Path) -> None:
    start = build_polar(resolve("tiny:0", tmp_path), tmp_path / "start")
    lora = AdapterConfig(rank=2, alpha=8)
    first = go(settings(lora=lora, lr=1e-2), start, tmp_path / "first")
    second = go(settings(lora=lora, lr=1e-3, adapter=str(first.adapter)), start, tmp_path / "second")
    # It begins where the first one ended, and its adapter alone, on the same start, is all that was learnt.
    assert second.validations[0].loss == pytest.approx(first.validations[-1].loss, abs=1e-5)
    assert second.validations[-1].loss != second.validations[0].loss
    assert second.adapter is not None
    ship(second.adapter, tmp_path / "weights" / "both", base="tiny:0")
    shipped = load_polar(resolve_polar("polar:both", tmp_path, tmp_path / "weights"), torch.float32)
    found = validate(shipped, encode_pairs(HELDOUT, load_encoder(start), "x"), 2)
    assert found.loss == pytest.approx(second.validations[-1].loss, abs=0.02)


@pytest.mark.parametrize(
    ("adapter", "rank", "message"),
    [("nowhere", 2, "no adapter there"), ("first", 4, "has rank 2 and alpha 8; training.lora says 4 and 8")],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, adapter: str, rank: int, message: str) -> None:
    start = build_polar(resolve("tiny:0", tmp_path), tmp_path / "start")
    go(settings(lora=AdapterConfig(rank=2, alpha=8)), start, tmp_path / "first")
    folder = str(tmp_path / adapter / "adapter")
    with pytest.raises(UserError, match=message):
        go(settings(lora=AdapterConfig(rank=rank, alpha=8), adapter=folder), start, tmp_path / "second")


def test_mixed_precision_keeps_float32_weights_and_saves_bfloat16(start: Path, tmp_path: Path) -> None:
    config = settings(dtype="bfloat16", gradient_checkpointing=True)
    pairs = encode_pairs(TRAIN, load_encoder(start), "train on")
    plan = make_plan(config, count_parameters(start), pairs)
    trainer = build_trainer(config, plan, start, pairs, tmp_path / "checkpoints")
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    outcome = go(config, start, tmp_path / "run")
    saved = load_file(outcome.model / "model.safetensors")
    assert saved.pop("score.weight").dtype == torch.float32
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert all(math.isfinite(metrics["loss/total"]) for _, metrics in numbers(tmp_path / "run")[1:])


def test_gradient_checkpointing_changes_nothing(start: Path, tmp_path: Path) -> None:
    plain = go(settings(), start, tmp_path / "plain")
    checkpointed = go(settings(gradient_checkpointing=True), start, tmp_path / "checkpointed")
    assert plain.validations[-1].loss == pytest.approx(checkpointed.validations[-1].loss, abs=1e-5)


def test_lengths_of_the_training_stay_with_the_model(start: Path, tmp_path: Path) -> None:
    outcome = go(settings(max_length=60, max_response_length=10), start, tmp_path)
    assert polar_settings(outcome.model).max_length == 60 and polar_settings(outcome.model).max_response_length == 10
    assert outcome.truncated == len(TRAIN)  # every response has 12 letters


def test_a_folder_is_not_continued_with_other_settings_or_pairs(start: Path, tmp_path: Path) -> None:
    go(settings(), start, tmp_path)
    with pytest.raises(UserError, match=r"belongs to another run: seed was different"):
        go(settings(seed=1), start, tmp_path)
    with pytest.raises(UserError, match=r"belongs to another run: triples was different"):
        go(settings(), start, tmp_path, train_on=TRAIN[:-1])


def test_checkpoints_are_whole_or_not_used(start: Path, tmp_path: Path) -> None:
    """A state without TRL's part beside it is passed over, down to the beginning."""
    with pytest.raises(KeyboardInterrupt):
        go(settings(), start, tmp_path, kill_at=5)
    for folder in (tmp_path / "checkpoints").glob("checkpoint-*"):
        (folder / "trainer_state.json").unlink()
    found = Checkpoints(tmp_path / "checkpoints", dict).latest()
    assert found is not None and found[0].step == 0
    whole = go(settings(), start, tmp_path.with_name("whole"))
    assert go(settings(), start, tmp_path).validations == whole.validations


def test_the_claim_is_json(start: Path, tmp_path: Path) -> None:
    go(settings(), start, tmp_path)
    claim = json.loads((tmp_path / "training.json").read_text())
    assert claim["lr"] == 3e-3 and len(claim["triples"]) == 64
