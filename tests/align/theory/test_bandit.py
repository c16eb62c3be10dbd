"""Proposition 2.1 on few seeds, and what surrounds it."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from align.theory.bandit import BanditConfig, BanditResult, arms_of, draws, run_bandit, theorem_alpha
from align.theory.report import bandit_metrics, bandit_table, mean_interval, plot_bandit
from align.tracking.metrics import undocumented

SMALL = BanditConfig(runs=100)


@pytest.fixture(scope="module")
def result() -> BanditResult:
    return run_bandit(SMALL)


def stuck(result: BanditResult, name: str) -> float:
    return float(result.stuck[result.index(name)].mean())


def last(result: BanditResult, name: str) -> float:
    return float(result.suboptimality[result.index(name), -1].mean())


def test_the_rounds_are_those_of_the_proposition() -> None:
    # exp(1/(8 * 0.02))/2 = exp(6.25)/2 = 518.01/2.
    assert SMALL.horizon == pytest.approx(259.006, abs=1e-3)
    assert SMALL.rounds <= SMALL.horizon


def test_the_theorems_alpha() -> None:
    # V_max = R_max = 1: beta/(2 e^2) = 0.0013534. Theta spans -56.25 to 50 + 0.0019: |Pi| = ceil(0.02 * 106.25 * 250) =
    # 532; sqrt(log(532 * 250/0.05) log(250)/500) = sqrt(14.7938 * 5.5215/500) = 0.40419. The product is 5.470e-4.
    assert theorem_alpha(SMALL) == pytest.approx(5.470e-4, rel=1e-3)


def test_online_dpo_stays_stuck_in_most_runs_and_xpo_in_none(result: BanditResult) -> None:
    assert stuck(result, "online_dpo") > 0.5
    assert stuck(result, "online_dpo_onpolicy") > 0.5
    assert stuck(result, "xpo") == 0
    assert last(result, "xpo") < 0.1 * last(result, "online_dpo")


def test_the_wrong_sign_is_worse_than_no_bonus(result: BanditResult) -> None:
    assert stuck(result, "wrong_sign") > stuck(result, "online_dpo") + 0.1
    assert last(result, "wrong_sign") > last(result, "online_dpo")


def test_every_arm_starts_at_the_reference_policy(result: BanditResult) -> None:
    at_reference = SMALL.problem.suboptimality(np.array([SMALL.problem.theta_ref]))[0]
    assert np.all(result.suboptimality[:, 0] == at_reference)
    assert result.suboptimality.shape == (len(result.arms), SMALL.rounds + 1, SMALL.runs)
    assert np.all(result.suboptimality >= 0)


def test_an_arm_that_is_never_sampled_keeps_online_dpo_at_the_reference_policy() -> None:
    # All 2T samples of such a run are b: probability (1 - e^-6.25)^500 = 0.3806 for T = 250. 4 standard deviations.
    config = BanditConfig(runs=300, alpha_factors=())
    result = run_bandit(config)
    chance = (1 - math.exp(-6.25)) ** 500
    for name in ("online_dpo", "online_dpo_onpolicy"):
        k = result.index(name)
        unseen = ~result.saw_a[k]
        assert abs(unseen.mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / 300)
        curves = result.suboptimality[k][:, unseen]
        assert np.all(curves == curves[0])
        assert np.all(result.stuck[k][unseen])


def test_runs_depend_on_the_seed_and_their_number_alone() -> None:
    few, more = (run_bandit(replace(SMALL, runs=n, rounds=20, alpha_factors=())) for n in (5, 9))
    assert np.array_equal(few.suboptimality, more.suboptimality[:, :, :5])
    assert not np.array_equal(draws(SMALL), draws(replace(SMALL, seed=1)))


def test_without_the_bonus_on_identical_pairs_xpo_waits_for_luck_like_online_dpo(result: BanditResult) -> None:
    # Until the better arm is sampled, every pair is (b, b): without its bonus nothing is left of the objective.
    dropped, dpo = (result.suboptimality[result.index(n)] for n in ("xpo_identical_dropped", "online_dpo"))
    unseen = ~result.saw_a[result.index("online_dpo")]
    assert unseen.any()
    assert np.array_equal(dropped[:, unseen], dpo[:, unseen])


def test_optimism_costs_where_the_rare_arm_is_the_worse_one() -> None:
    # The control of the control: with r(a) = 0 the reference policy is all but optimal, and looking at a costs rounds.
    mirror = run_bandit(replace(SMALL, reward_a=0.0, alpha_factors=()))
    regret = {arm.name: mirror.suboptimality[k].mean() for k, arm in enumerate(mirror.arms)}
    assert regret["online_dpo"] < 0.05 < regret["xpo"]


def test_the_order_of_the_arms() -> None:
    names = [arm.name for arm in arms_of(replace(SMALL, alpha=0.1, alpha_factors=(2.0,)))]
    assert names == [
        "online_dpo",
        "online_dpo_onpolicy",
        "xpo",
        "xpo_alpha_x2",
        "xpo_onpolicy",
        "xpo_identical_dropped",
        "wrong_sign",
    ]
    by_name = {arm.name: arm.alpha for arm in arms_of(replace(SMALL, alpha=0.1, alpha_factors=(2.0,)))}
    assert by_name["xpo"] == 0.1 and by_name["xpo_alpha_x2"] == 0.2 and by_name["wrong_sign"] == -0.1


def test_mean_and_interval_by_hand() -> None:
    # 1 to 5: mean 3, standard deviation sqrt(2.5), t with 4 degrees of freedom 2.776: half width 2.776/sqrt(2) = 1.963.
    mean, low, high = mean_interval(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert mean[0] == 3.0
    assert (low[0], high[0]) == (pytest.approx(1.037, abs=0.01), pytest.approx(4.963, abs=0.01))


def test_the_table_names_every_arm_and_the_regime(result: BanditResult) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(bandit_table(result))
    text = console.export_text()
    assert all(arm.name in text for arm in result.arms)
    assert "inside" in text and "J_beta" in text
    console.print(bandit_table(run_bandit(replace(SMALL, beta=0.05, runs=2, rounds=7))))
    assert "OUTSIDE" in console.export_text()


def test_the_metrics_are_documented_and_agree_with_the_result(result: BanditResult) -> None:
    steps = dict(bandit_metrics(result))
    assert list(steps) == list(range(SMALL.rounds + 1))
    assert undocumented(name for row in steps.values() for name in row) == []
    assert steps[7]["bandit/xpo/suboptimality"] == result.suboptimality[result.index("xpo"), 7].mean()
    assert steps[SMALL.rounds]["bandit/online_dpo/stuck"] == stuck(result, "online_dpo")


def test_the_picture_is_a_png(result: BanditResult, tmp_path: Path) -> None:
    path = plot_bandit(result, tmp_path / "bandit.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1 round and 2 runs"):
        BanditConfig(runs=1)
    with pytest.raises(ValueError, match="must be positive"):
        BanditConfig(alpha=-0.1)
