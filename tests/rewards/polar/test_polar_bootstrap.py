"""The interval of a mean over prompts: against a plain form, its coverage, and its edges."""

import math
import random
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.polar.bootstrap import BootstrapConfig, Estimate, cluster_mean

PERCENTILE = BootstrapConfig(method="percentile")


def test_the_mean_weighs_values_and_not_clusters() -> None:
    assert cluster_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.75


def test_intervals_agree_with_a_plain_form() -> None:
    """Resampling and BCa written out, with random numbers of another kind."""
    rng = random.Random(3)
    groups = [[rng.expovariate(1.0) + 0.2 * k % 1 for _ in range(1 + k % 3)] for k in range(25)]
    values = [x for group in groups for x in group]
    names = [k for k, group in enumerate(groups) for _ in group]

    def mean(some: list[list[float]]) -> float:
        return fmean([x for group in some for x in group])

    draws = sorted(mean(rng.choices(groups, k=25)) for _ in range(20_000))
    normal = NormalDist()
    bias = normal.inv_cdf(sum(d < mean(groups) for d in draws) / len(draws))
    left_out = [mean(groups[:k] + groups[k + 1 :]) for k in range(25)]
    gaps = [fmean(left_out) - x for x in left_out]
    skew = sum(g**3 for g in gaps) / (6 * sum(g**2 for g in gaps) ** 1.5)
    levels = [normal.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in map(normal.inv_cdf, (0.025, 0.975))]
    for config, (low, high) in (
        (BootstrapConfig(20_000), levels),
        (BootstrapConfig(20_000, 0, "percentile"), (0.025, 0.975)),
    ):
        made = cluster_mean(values, names, config)
        assert made.value == pytest.approx(mean(groups))
        assert made.low == pytest.approx(draws[int(low * len(draws))], abs=0.02)
        assert made.high == pytest.approx(draws[int(high * len(draws))], abs=0.02)
    assert levels[0] > 0.026 and levels[1] > 0.976  # the correction is there to be seen: both ends move to the tail


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=12), st.integers(2, 4))
@example([0.0, 0.0, 9.35e-126], 2)
def test_more_triples_of_the_same_prompts_make_nothing_surer(values: list[float], times: int) -> None:
    one = cluster_mean(values, range(len(values)))
    many = cluster_mean(
        [x for x in values for _ in range(times)], [k for k in range(len(values)) for _ in range(times)]
    )
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12), st.sampled_from(["bca", "percentile"]))
def test_turned_values_have_the_turned_interval(values: list[float], method: str) -> None:
    config = BootstrapConfig(method=method)  # type: ignore[arg-type]
    plain = cluster_mean(values, range(len(values)), config, (0.0, 1.0))
    turned = cluster_mean([1 - x for x in values], range(len(values)), config, (0.0, 1.0))
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 - plain.value, 1 - plain.high, 1 - plain.low))
    assert 0 <= plain.low <= plain.value <= plain.high <= 1


@pytest.mark.parametrize("share", [0.5, 0.85])
def test_intervals_cover_the_truth_as_often_as_they_say(share: float) -> None:
    """60 prompts of three triples that agree more often than chance; the plain 95% interval over triples covers 80%."""
    rng = np.random.default_rng(11)
    covered, trials = 0, 400
    for seed in range(trials):
        together = rng.random(60) < share
        apart = rng.random((60, 3)) < share
        hits = np.where(rng.random((60, 1)) < 0.7, together[:, None], apart)
        made = cluster_mean(hits.ravel(), np.repeat(np.arange(60), 3).tolist(), BootstrapConfig(600, seed), (0.0, 1.0))
        covered += made.low <= share <= made.high
    # Five standard errors of a binomial share of 400 are 5.4 points; the bootstrap is known to be a little short.
    assert 0.90 <= covered / trials <= 0.99


def test_prompts_that_agree_still_leave_doubt() -> None:
    # With one pseudo-prompt at each end, all 3 right: mean 4/5, variance 4/25 over 5, and 1.96 of its root.
    made = cluster_mean([1.0, 1.0, 1.0], ["a", "b", "c"], None, (0.0, 1.0))
    assert (made.value, made.high) == (1.0, 1.0)
    assert made.low == pytest.approx(0.8 - 1.959964 * math.sqrt(0.16 / 5))
    # Differences of zero: mean 0, variance 2/5.
    made = cluster_mean([0.0, 0.0, 0.0], ["a", "b", "c"], None, (-1.0, 1.0))
    assert (made.low, made.high) == pytest.approx((-1.959964 * math.sqrt(0.08), 1.959964 * math.sqrt(0.08)))
    # A loss of ln 2 everywhere is just that.
    same = math.log(2)
    assert cluster_mean([same] * 3, ["a", "b", "c"], None, (0.0, math.inf)) == Estimate(same, same, same)


def test_one_prompt_tells_nothing() -> None:
    assert cluster_mean([1.0, 0.0], ["a", "a"], None, (0.0, 1.0)) == Estimate(0.5, 0.0, 1.0)
    assert cluster_mean([3.0], ["a"]) == Estimate(3.0, -math.inf, math.inf)


def test_the_seed_alone_decides() -> None:
    values = [0.0, 1.0, 2.5, -1.0, 0.3]
    assert cluster_mean(values, range(5)) == cluster_mean(values, range(5))
    assert cluster_mean(values, range(5)) != cluster_mean(values, range(5), BootstrapConfig(seed=1))


def test_drawing_in_parts_stays_within_memory_and_covers_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(0).normal(size=50))
    whole = cluster_mean(values, range(50), PERCENTILE)
    monkeypatch.setattr("rewards.polar.bootstrap._DRAWN_AT_ONCE", 120)  # two resamples at a time
    assert cluster_mean(values, range(50), PERCENTILE) == whole


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"]), ([[1.0]], ["a"])])
def test_what_is_no_list_of_values_is_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"one each|at least one"):
        cluster_mean(values, clusters)


@pytest.mark.parametrize("setting", [{"resamples": 99}, {"method": "normal"}])
def test_settings_without_a_meaning_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        BootstrapConfig(**setting)  # type: ignore[arg-type]
