"""What steps are paid, by hand; that truth is used only where asked for; and what is reported."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.protocols import Labeller
from rewards.success.errors import SuccessError
from rewards.success.labeller import SuccessLabelConfig, SuccessLabeller
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import Episode, Source
from tests.rewards.success.toys import LEFT, ended, episode

POLICY = Source.POLICY


def policy(places: Sequence[float], detected: Sequence[float], over: bool, seed: int = 0) -> Episode:
    made = replace(episode(places, source=POLICY, detected=detected, seed=seed), id=f"p{seed}")
    return ended(made) if over else made


def label(episodes: list[Episode], judge: Any = None, **config: Any) -> tuple[list[LabelledEpisode], dict[str, float]]:
    labeller: Labeller[Episode, LabelledEpisode] = SuccessLabeller(SuccessLabelConfig(**config), judge)
    labelled, metrics = labeller.label(episodes, step=0)
    return list(labelled), dict(metrics)


def test_a_detected_success_ends_with_nothing_to_pay() -> None:
    [item], _ = label([policy([0.1, 0.5, 0.9], [0.2, 0.95], over=True)], gamma=0.5)
    assert item.rewards.tolist() == [-1, 0]
    assert item.terminals.tolist() == [False, True]
    assert item.mc_returns.tolist() == [-1, 0]


def test_an_attempt_that_was_cut_has_no_terminal_step_and_fails_for_ever() -> None:
    [item], _ = label([policy([0.1, 0.5, 0.9], [0.2, 0.95], over=False)], gamma=0.5)
    assert item.rewards.tolist() == [-1, -1]
    assert not item.terminals.any()
    assert item.mc_returns.tolist() == [-2, -2]


def test_demonstrations_end_in_successes_and_failures_in_none() -> None:
    shown = episode([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # the simulator never agrees
    failed = episode([0.1, 0.9], source=Source.FAILURE)  # the simulator does not agree either
    items, _ = label([shown, failed], gamma=0.5)
    assert items[0].rewards.tolist() == [-1, -1, 0, 0, 0]
    assert items[0].terminals.tolist() == [False, False, True, True, True]
    assert items[0].mc_returns.tolist() == [-1.5, -1, 0, 0, 0]
    assert items[1].rewards.tolist() == [-1]
    items, _ = label([shown], num_positive_frames=1)
    assert items[0].terminals.tolist() == [False] * 4 + [True]
    items, _ = label([replace(shown, source=Source.PRIOR, terminated=ends) for ends in (True, False)])
    assert [item.terminals.sum() for item in items] == [3, 0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.booleans(), st.sampled_from(list(Source)))
def test_the_truth_changes_no_label_unless_asked_for(places: list[float], over: bool, source: Source) -> None:
    plain = replace(episode(places, source=source, detected=[0.5] * (len(places) - 1)), terminated=over)
    lied = replace(plain, success=~plain.success, rewards=plain.rewards + 5)
    (one,), (two,) = label([plain])[0], label([lied])[0]
    for name in ("rewards", "terminals", "mc_returns"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_truth_where_it_is_asked_for() -> None:
    items, _ = label([policy([0.1, 0.9, 0.5], [0.1, 0.1], over=False)], source="truth")
    assert items[0].rewards.tolist() == [0, -1]
    assert items[0].terminals.tolist() == [True, False]
    shown = episode([0.1, 0.5, 0.9])
    assert label([shown], source="truth")[0][0].terminals.tolist() == [False, True]
    with pytest.raises(SuccessError, match="never succeeds by the simulator"):
        label([episode([0.1, 0.5])], source="truth")


def test_the_environments_own_rewards() -> None:
    paid = replace(policy([0.1, 0.5, 0.9], [np.nan] * 2, over=True), rewards=np.array([0.25, 2.0], np.float32))
    [item], _ = label([paid], source="environment", gamma=0.5)
    assert item.rewards.tolist() == [0.25, 2.0]
    assert item.terminals.tolist() == [False, True]
    assert item.mc_returns.tolist() == [1.25, 2.0]
    assert paid.rewards.tolist() == [0.25, 2.0]


def test_an_end_that_no_detector_saw_is_refused() -> None:
    with pytest.raises(SuccessError, match="ended without a detection"):
        label([policy([0.1, 0.9], [np.nan], over=True)])


def test_rates_are_against_the_truth_and_over_the_policys_own_frames() -> None:
    episodes = [
        policy([0.1, 0.5, 0.9], [0.1, 0.9], over=True, seed=1),  # right: 1 negative kept, 1 hit
        policy([0.1, 0.5, 0.5], [0.1, 0.9], over=True, seed=2),  # wrong: 1 negative kept, 1 false positive
        policy([0.1, 0.9, 0.9, 0.3], [0.1] * 3, over=False, seed=3),  # missed: 2 misses, 1 negative kept
        episode([0.1, 0.2, 0.3, 0.4]),  # a demonstration counts for nothing here
    ]
    _, metrics = label(episodes)
    assert metrics["reward/detected_success"] == pytest.approx(2 / 3)
    assert metrics["reward/false_positive_rate"] == pytest.approx(1 / 4)
    assert metrics["reward/false_negative_rate"] == pytest.approx(2 / 3)
    assert metrics["reward/precision"] == pytest.approx(1 / 2)
    assert metrics["reward/mean"] == pytest.approx(-5 / 7)


def test_a_rate_that_nothing_speaks_for_is_not_reported() -> None:
    _, metrics = label([policy([0.1, 0.2], [0.1], over=False)])
    assert metrics["reward/false_positive_rate"] == 0
    assert "reward/precision" not in metrics
    assert "reward/false_negative_rate" not in metrics
    _, metrics = label([episode([0.1, 0.2, 0.3, 0.4])])
    assert not [name for name in metrics if name.startswith("reward/")]


def test_the_window_forgets_and_is_resumed() -> None:
    config = SuccessLabelConfig(window=2)
    wrong, right = (policy([0.1, 0.2], [0.9], True, 1), policy([0.1, 0.9], [0.9], True, 2))
    labeller = SuccessLabeller(config)
    assert labeller.label([wrong, right], 0)[1]["reward/precision"] == 0.5
    other = SuccessLabeller(config)
    other.load_state_dict(labeller.state_dict())
    assert other.label([right], 1)[1] == labeller.label([right], 1)[1]
    assert labeller.label([right], 2)[1]["reward/precision"] == 1
    assert all(isinstance(n, int) for row in labeller.state_dict()["recent"] for n in row)


def test_an_attempt_without_a_step_is_counted_and_labels_nothing() -> None:
    labelled, metrics = label([policy([0.9], [], over=True)])
    assert labelled == []
    assert metrics["label/empty"] == 1


class Told:
    def __init__(self, **says: float) -> None:
        self._says = says

    def probabilities(self, episodes: Sequence[Episode]) -> np.ndarray:
        assert all(e.source is POLICY for e in episodes)
        return np.array([self._says[e.id] for e in episodes], np.float32)


def test_the_rankers_bonus_and_filter() -> None:
    episodes = [
        policy([0.1, 0.5, 0.9], [0.1, 0.9], True, 1),
        policy([0.1, 0.5, 0.9], [0.1, 0.9], True, 2),
        policy([0.1, 0.5], [0.1], False, 3),
        episode([0.9, 0.5, 0.4, 0.1], LEFT),
    ]
    labelled, metrics = label(episodes, Told(p1=0.5, p2=0.1, p3=0.8), bonus_weight=2.0, least_probability=0.2)
    assert [item.episode.id for item in labelled] == ["p1", "p3", episodes[3].id]
    assert labelled[0].rewards.tolist() == [-1, 1]  # 0 + 2 * 0.5
    assert labelled[1].rewards.tolist() == [-1]
    assert labelled[2].rewards.tolist() == [0, 0, 0]
    assert metrics["label/left_out"] == 1
    assert metrics["reward/ranker"] == pytest.approx((0.5 + 0.1 + 0.8) / 3)
    assert metrics["reward/ranker_auroc"] == 0  # both successes, in truth, lie below the failure


def test_ranks_of_recent_attempts_are_kept_and_resumed() -> None:
    config = SuccessLabelConfig(bonus_weight=1.0, window=2)
    good, bad = policy([0.1, 0.9], [0.9], True, 1), policy([0.1, 0.5], [0.1], False, 2)
    labeller, other = (SuccessLabeller(config, Told(p1=0.7, p2=0.2)) for _ in range(2))
    assert "reward/ranker_auroc" not in labeller.label([good], 0)[1]
    other.load_state_dict(labeller.state_dict())
    assert other.label([bad], 1)[1]["reward/ranker_auroc"] == 1
    assert "reward/ranker_auroc" not in other.label([bad], 2)[1]  # the success is forgotten


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"gamma": 1.0}, "gamma"),
        ({"num_positive_frames": 0}, "num_positive_frames"),
        ({"step_reward": 0.0}, "step_reward"),
        ({"source": "guess"}, "unknown"),
        ({"least_probability": 1.5}, "least_probability"),
        ({"bonus_weight": 1.0}, "need a trajectory judge"),
    ],
)
def test_settings_of_a_labeller_that_mean_nothing_are_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label([], **broken)
