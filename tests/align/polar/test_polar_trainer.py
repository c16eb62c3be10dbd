"""TRL's trainer as it is set up here: its loss against one by hand, validation, and what ``auto`` stands for."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from align.learners.adapters import AdapterConfig
from align.polar.config import PolarTraining
from align.polar.pairs import Pairs, encode_pairs
from align.polar.trainer import build_trainer, count_parameters, make_plan
from align.polar.validate import score_margins, validate
from rewards.polar.model import load_encoder, load_polar
from tests.align.polar.polars import HELDOUT, TRAIN, settings


def trainer_of(config: PolarTraining, model: Path, folder: Path) -> tuple[Any, Pairs, Any]:
    pairs = encode_pairs(TRAIN, load_encoder(model), "train on")
    plan = make_plan(config, count_parameters(model), pairs)
    return build_trainer(config, plan, model, pairs, folder), pairs, plan


def score(model: Any, ids: np.ndarray) -> torch.Tensor:
    """The score of one sequence by itself, from the hidden state of its last token: no padding, no pooling."""
    hidden = model.model(input_ids=torch.from_numpy(ids).long()[None]).last_hidden_state[0, -1]
    return hidden.float() @ model.score.weight[0].float()


def test_trls_loss_and_gradient_are_bradley_terrys_at_the_last_real_token(scoring: Path, tmp_path: Path) -> None:
    trainer, pairs, plan = trainer_of(settings(micro_batch_size=4), scoring, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    # Two sequences a pair in one pass, chosen above rejected, in our order, padded on the right.
    first = plan.order[:4]
    expected = [*(pairs.chosen[i] for i in first), *(pairs.rejected[i] for i in first)]
    assert batch["input_ids"].shape == (8, max(map(len, expected)))
    for row, mask, ids in zip(batch["input_ids"], batch["attention_mask"], expected, strict=True):
        assert row[: len(ids)].tolist() == ids.tolist() and int(mask.sum()) == len(ids) and mask[: len(ids)].all()
    assert len({len(ids) for ids in expected}) > 1  # there is padding

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    plain = load_polar(scoring, torch.float32)
    margins = torch.stack([score(plain, pairs.chosen[i]) - score(plain, pairs.rejected[i]) for i in first])
    by_hand = -logsigmoid(margins).mean()
    by_hand.backward()
    assert float(margins.detach().abs().min()) > 1e-3
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6), name


def test_a_zero_head_gives_ln_2_and_half_right(start: Path) -> None:
    found = validate(load_polar(start, torch.float32), encode_pairs(HELDOUT, load_encoder(start), "x"), 2)
    assert (found.loss, found.accuracy, found.margin) == (pytest.approx(math.log(2), abs=1e-9), 0.5, 0.0)


def test_validation_by_hand(scoring: Path) -> None:
    model, pairs = load_polar(scoring, torch.float32), encode_pairs(HELDOUT, load_encoder(scoring), "x")
    with torch.no_grad():
        margins = [float(score(model, c) - score(model, r)) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    for batch_size in (1, 2, 5):
        assert score_margins(model, pairs, batch_size) == pytest.approx(margins, abs=1e-5)
    found = validate(model, pairs, 2, step=3, tokens=9)
    assert found.loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 5, abs=1e-6)
    assert found.accuracy == sum(m > 0 for m in margins) / 5
    # Exchanging the sides changes the sign of every margin: the loss changes by their mean.
    swapped = validate(model, dataclasses.replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen), 2)
    assert swapped.margin == pytest.approx(-found.margin, abs=1e-6)
    assert found.loss - swapped.loss == pytest.approx(-found.margin, abs=1e-6)


def test_shuffled_references_change_the_scores(scoring: Path) -> None:
    encoder, model = load_encoder(scoring), load_polar(scoring, torch.float32)
    references = [t.reference for t in HELDOUT]
    shuffled = [
        dataclasses.replace(t, reference=r) for t, r in zip(HELDOUT, references[1:] + references[:1], strict=True)
    ]
    one, other = (score_margins(model, encode_pairs(rows, encoder, "x"), 2) for rows in (HELDOUT, shuffled))
    assert all(abs(a - b) > 1e-4 for a, b in zip(one, other, strict=True))


def test_auto_is_the_papers_fit_and_is_noted(start: Path, tmp_path: Path) -> None:
    pairs = encode_pairs(TRAIN, load_encoder(start), "x")
    size = count_parameters(start)
    plan = make_plan(settings(lr="auto", batch_size="auto", backbone_tokens=2e12), size, pairs)
    # 12 short pairs: far below one pair an update, and below the lowest learning rate that was tried.
    assert (plan.lr, plan.batch_size, plan.micro_batch_size) == (5e-6, 1, 1)
    assert plan.steps == 24 and len(plan.notes) == 3
    assert make_plan(settings(), size, pairs).notes == ()


def test_parameters_are_counted(start: Path) -> None:
    size = count_parameters(start)
    model = load_polar(start, torch.float32)
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.total - size.non_embedding == 261 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "must be a multiple of training.micro_batch_size"),
        ({"checkpoint_every": 3, "log_every": 2}, "must be a multiple of training.log_every"),
        ({"lr": "auto"}, "needs training.backbone_tokens"),
        ({"lr": "auto", "lora": AdapterConfig()}, "give a number with an adapter"),
        ({"lr": 0.0}, "training.lr must be above 0"),
        ({"min_lr_ratio": 2.0}, "a share of 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)
