"""Objectives in the learner: every variant trains, batches may be cut anywhere, schedules run, soft labels count."""

import dataclasses
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from align.learners.objectives import DPO, XPO, Objective, PairContext, Schedule, Variant, VariantLoss
from align.learners.optim import OptimizerConfig
from align.learners.preference import LearnerConfig, PreferenceLearner, _explored
from align.types import PairBatch, PairLogps
from rollouts.types import Origin
from tests.align.learners.pairs import PAIRS, Shelf

OPTIONS = {"robust": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.1}, "exo": {"label_smoothing": 0.1}}


def learner(model: Path, objective: Objective, micro: int = 64, explore: str = "reference") -> PreferenceLearner:
    config = LearnerConfig(
        model,
        OptimizerConfig(lr=1e-3, max_grad_norm=0.5),
        dtype="float32",
        micro_batch_tokens=micro,
        explore=explore,  # type: ignore[arg-type]
    )
    return PreferenceLearner(config, objective, lambda policy: Shelf())


def batch(step: int = 1, **changes: object) -> PairBatch:
    pairs = tuple(dataclasses.replace(pair, **changes) for pair in PAIRS)  # type: ignore[arg-type]
    return PairBatch(pairs, (False,) * len(pairs), len(pairs), step)


def context(step: int = 1, target: float = 1.0) -> PairContext:
    yes = torch.tensor([True, True])
    lengths = torch.tensor([3, 2])
    return PairContext(yes, torch.tensor([True, False]), torch.tensor([target, target]), lengths, lengths, step)


LOGPS = PairLogps(
    torch.tensor([-10.0, -12.0]),
    torch.tensor([-14.0, -9.0]),
    torch.tensor([-11.0, -11.0]),
    torch.tensor([-13.0, -10.0]),
)


def test_a_schedule_has_a_value_for_each_loop_step_and_its_last_holds() -> None:
    paper = Schedule(0.5, (1e-5, 5e-6, 0.0))
    assert [paper.at(step) for step in (1, 2, 3, 4, 99)] == [1e-5, 5e-6, 0.0, 0.0, 0.0]
    assert Schedule(0.5).at(7) == 0.5


def test_xpo_by_hand() -> None:
    # Log-ratios: chosen 1 and -1, rejected -1 and 1, so h = 2 and -2. The explored sides are the first pair's chosen
    # (ratio 1) and the second pair's rejected one (ratio 1): a bonus of alpha each.
    loss, terms = XPO(Schedule(0.1), Schedule(0.0, (0.25,)))(LOGPS, context())
    dpo = torch.tensor([math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(0.2))])
    torch.testing.assert_close(terms["loss/preference"], dpo)
    torch.testing.assert_close(terms["loss/bonus"], torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(loss, dpo + 0.25)


def test_a_soft_label_is_conservative_dpo_with_the_labellers_own_probability() -> None:
    # -p log s(x) - (1 - p) log s(-x) at p = 0.8, x = 0.1 h = 0.2 and -0.2.
    loss, _ = DPO(Schedule(0.1))(LOGPS, context(target=0.8))
    win, lose = math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(0.2))
    torch.testing.assert_close(loss, torch.tensor([0.8 * win + 0.2 * lose, 0.8 * lose + 0.2 * win]))


def test_a_hard_label_is_dpo_bit_for_bit() -> None:
    hard, _ = DPO(Schedule(0.1))(LOGPS, context())
    no_bonus, _ = XPO(Schedule(0.1), Schedule(0.0))(LOGPS, context())
    assert torch.equal(hard, no_bonus)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_trains_alike_however_the_batch_is_cut(variant: Variant, tiny_model: Path) -> None:
    # 1 x 8, 4 x 2 and 8 x 1 pairs to a pass; rows have 8 tokens each. Losses that compare pairs of a batch included.
    learners = [
        learner(tiny_model, VariantLoss(variant, Schedule(0.1), OPTIONS.get(variant, {})), micro)
        for micro in (64, 16, 8)
    ]
    for step in (1, 2):
        metrics = [each.update(batch(step)) for each in learners]
        for other in metrics[1:]:
            assert other["optim/grad_norm"] == pytest.approx(metrics[0]["optim/grad_norm"], rel=1e-3)
            assert other["loss/total"] == pytest.approx(metrics[0]["loss/total"], abs=1e-5)
    assert metrics[0]["optim/grad_norm"] > 0
    assert metrics[0]["beta"] == 0.1


def test_schedules_run_and_are_logged(tiny_model: Path) -> None:
    each = learner(tiny_model, XPO(Schedule(0.1, (0.2, 0.1)), Schedule(0.0, (1e-5, 5e-6, 0.0))))
    rows = [each.update(batch(step)) for step in (1, 2, 3)]
    assert [row["beta"] for row in rows] == [0.2, 0.1, 0.1]
    assert [row["alpha"] for row in rows] == [1e-5, 5e-6, 0.0]


def test_soft_labels_reach_the_loss(tiny_model: Path) -> None:
    # At a probability of one half nothing is to be learned at the reference: the gradient of cDPO is zero there.
    undecided = learner(tiny_model, DPO(Schedule(0.1))).update(batch(target=0.5))
    decided = learner(tiny_model, DPO(Schedule(0.1))).update(batch(target=1.0))
    assert undecided["optim/grad_norm"] == pytest.approx(0.0, abs=1e-6)
    assert decided["optim/grad_norm"] > 1e-3


def test_which_of_two_policy_samples_is_explored_does_not_depend_on_who_won() -> None:
    for pair in PAIRS:
        ours = dataclasses.replace(pair, rejected=dataclasses.replace(pair.rejected, origin=Origin.POLICY))
        swapped = dataclasses.replace(ours, chosen=ours.rejected, rejected=ours.chosen)
        assert {_explored(ours, "policy"), _explored(swapped, "policy")} == {"chosen", "rejected"}
        assert _explored(pair, "policy") is None
        assert _explored(pair, "reference") == "rejected"
        assert _explored(ours, "reference") is None
        theirs = dataclasses.replace(pair, chosen=dataclasses.replace(pair.chosen, origin=Origin.REFERENCE))
        turned = dataclasses.replace(theirs, chosen=theirs.rejected, rejected=theirs.chosen)
        assert {_explored(theirs, "reference"), _explored(turned, "reference")} == {"chosen", "rejected"}


def test_both_samples_of_the_policy_carry_a_bonus_in_the_on_policy_form(tiny_model: Path) -> None:
    ours = tuple(dataclasses.replace(p, rejected=dataclasses.replace(p.rejected, origin=Origin.POLICY)) for p in PAIRS)
    fresh = PairBatch(ours, (False,) * 8, 8, 1)
    bold = learner(tiny_model, XPO(Schedule(0.1), Schedule(1.0)), explore="policy")
    plain = learner(tiny_model, XPO(Schedule(0.1), Schedule(0.0)), explore="policy")
    for _ in range(3):
        with_bonus, without = bold.update(fresh), plain.update(fresh)
    assert (
        with_bonus["logps/chosen"] + with_bonus["logps/rejected"] < without["logps/chosen"] + without["logps/rejected"]
    )
