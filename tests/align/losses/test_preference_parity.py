"""Every variant that TRL's DPOTrainer has, against the installed TRL's own loss code: values and gradients.

A real ``DPOTrainer`` computes its loss on a batch of its own collator; ours is computed from log-probabilities that a
plain transformers forward takes of the same batch. No formula of TRL is written down here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.losses import preference as ours
from rollouts.models import load_causal_lm, load_tokenizer

BETA, SMOOTHING = 0.2, 0.15

Sides = tuple[Tensor, Tensor, Tensor, Tensor]
Loss = Callable[[Sides, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "sigmoid": lambda x, c, r: ours.dpo_loss(*x, beta=BETA),
    "hinge": lambda x, c, r: ours.hinge_loss(*x, beta=BETA),
    "ipo": lambda x, c, r: ours.ipo_norm_loss(*x, beta=BETA, chosen_length=c, rejected_length=r),
    "exo_pair": lambda x, c, r: ours.exo_loss(*x, beta=BETA, label_smoothing=SMOOTHING),
    "nca_pair": lambda x, c, r: ours.nca_loss(*x, beta=BETA),
    "robust": lambda x, c, r: ours.robust_loss(*x, beta=BETA, label_smoothing=SMOOTHING),
    "bco_pair": lambda x, c, r: ours.bco_loss(*x, beta=BETA),
    "sppo_hard": lambda x, c, r: ours.sppo_loss(*x, beta=BETA),
    "aot": lambda x, c, r: ours.aot_loss(*x, beta=BETA, label_smoothing=SMOOTHING),
    "apo_zero": lambda x, c, r: ours.apo_zero_loss(*x, beta=BETA),
    "apo_down": lambda x, c, r: ours.apo_down_loss(*x, beta=BETA),
    "discopop": lambda x, c, r: ours.discopop_loss(*x, beta=BETA),
    # TRL averages over the tokens of the batch: the mean of ours weighted by length.
    "sft": lambda x, c, r: ours.sft_loss(x[0], chosen_length=c) * c / c.float().mean(),
}
PAIRS = [
    ("2+2?", "4", "five"),
    ("Say hello to Ada.", "Hello, Ada! How are you?", "no"),
    ("Colour of the sky?", "blue", "It is green, as everybody knows."),
    ("x", "yz", "zy"),
    ("q", "a", "b"),
    ("w", "c", "d"),
    ("e", "f", "g"),
    ("Repeat: abc", "abc", "abcabc"),
]


@dataclass(frozen=True)
class Bench:
    trainer: Any
    inputs: dict[str, Tensor]
    policy: Any
    reference: Any


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def models() -> tuple[Any, Any]:
        policy, reference = (load_causal_lm(tiny_model, torch.float32, "eager") for _ in range(2))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in policy.parameters():
                p += 0.03 * torch.randn(p.shape, generator=generator)
        return policy, reference

    columns = zip(*PAIRS, strict=True)
    dataset = Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), map(list, columns), strict=True)))
    os.environ.setdefault("WANDB_MODE", "disabled")
    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        beta=BETA,
        label_smoothing=SMOOTHING,
        per_device_train_batch_size=len(PAIRS),
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    theirs, their_reference = models()
    trainer = DPOTrainer(
        model=theirs,
        ref_model=their_reference,
        args=config,
        train_dataset=dataset,
        processing_class=load_tokenizer(tiny_model),
    )
    trainer.model.train(False)
    return Bench(trainer, next(iter(trainer.get_train_dataloader())), *models())


def plain_logps(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Summed over completion tokens, [2B]: all chosen rows, then all rejected ones."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    taken = torch.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return (taken * inputs["completion_mask"][:, 1:]).sum(1)


def sides(bench: Bench) -> Sides:
    policy = plain_logps(bench.policy, bench.inputs).chunk(2)
    with torch.no_grad():
        reference = plain_logps(bench.reference, bench.inputs).chunk(2)
    return (*policy, *reference)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_the_batch_tells_the_losses_apart(bench: Bench) -> None:
    # Else parity could hold by accident: unequal lengths, log-ratios of both signs, ranks that differ for AOT.
    lengths = bench.inputs["completion_mask"].sum(1)
    x = sides(bench)
    h = (x[0] - x[2]) - (x[1] - x[3])
    assert len(set(lengths.tolist())) > 3
    assert h.min() < -0.1 and h.max() > 0.1
    assert (x[0] - x[1]).argsort().tolist() != (x[2] - x[3]).argsort().tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_trl(bench: Bench, name: str) -> None:
    trainer = bench.trainer
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    theirs = trainer.compute_loss(trainer.model, dict(bench.inputs))
    theirs.backward()
    expected = gradients(trainer.model)

    chosen_length, rejected_length = bench.inputs["completion_mask"].sum(1).chunk(2)
    losses = LOSSES[name](sides(bench), chosen_length, rejected_length)
    assert losses.shape == (len(PAIRS),)
    losses.mean().backward()
    got = gradients(bench.policy)

    assert losses.mean().item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-5)
    assert got.keys() == expected.keys() and any(g.abs().max() > 1e-3 for g in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-6)


def test_trl_has_no_label_smoothing_in_its_sigmoid_loss(bench: Bench) -> None:
    # Why cDPO has no parity test: with label_smoothing 0.15 TRL's ``sigmoid`` is plain DPO, and ours is not.
    trainer = bench.trainer
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    theirs = trainer.compute_loss(trainer.model, dict(bench.inputs)).item()
    assert trainer.label_smoothing == SMOOTHING
    x = sides(bench)
    assert ours.dpo_loss(*x, beta=BETA).mean().item() == pytest.approx(theirs, rel=1e-4)
    assert ours.cdpo_loss(*x, beta=BETA, label_smoothing=SMOOTHING).mean().item() != pytest.approx(theirs, rel=1e-2)
