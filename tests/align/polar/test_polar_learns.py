"""That a policy discriminator learns what it is for."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from align.polar.config import PolarTraining
from align.polar.pairs import encode_pairs
from align.polar.train import train
from align.polar.validate import validate
from rewards.polar.model import build_polar, load_encoder, load_polar
from rewards.polar.types import Triple
from rollouts.tiny import build_tiny_model
from tests.align.polar.polars import LETTERS, tracker, triples


def accuracy(model: Path, rows: Sequence[Triple]) -> float:
    return validate(load_polar(model, torch.float32), encode_pairs(rows, load_encoder(model), "x"), 64).accuracy


@pytest.mark.slow
def test_policies_are_told_apart_on_new_prompts_and_new_policies(tmp_path: Path) -> None:
    """Samplers that differ in their favourite letters alone: texts of one length, prompts of random letters."""
    rng = random.Random(0)
    policies = ["".join(rng.sample(LETTERS, 4)) for _ in range(60)]
    known, new = policies[:50], policies[50:]
    start = build_polar(build_tiny_model(tmp_path / "tiny", scale=0.05), tmp_path / "start")
    heldout = triples(known, 300, seed=8)
    outcome = train(
        PolarTraining(lr=3e-3, batch_size=32, micro_batch_size=32, dtype="float32", log_every=20),
        start,
        triples(known, 16000, seed=7),
        heldout,
        tmp_path / "run",
        make_tracker=tracker(tmp_path / "run"),
    )
    assert outcome.validations[-1].accuracy > 0.9
    assert accuracy(outcome.model, triples(new, 300, seed=9)) > 0.7
    references = [t.reference for t in heldout]
    shuffled = [
        dataclasses.replace(t, reference=r) for t, r in zip(heldout, references[1:] + references[:1], strict=True)
    ]
    assert abs(accuracy(outcome.model, shuffled) - 0.5) < 0.12
