"""Rates of frames and of episodes, by hand; and that a report is written whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewards.success.backbone import BackboneConfig, BackboneModel
from rewards.success.confusion import Confusion, confusion
from rewards.success.detector import DetectorConfig, StateBox
from rewards.success.errors import SuccessError
from rewards.success.frames import FrameConfig, frames_of
from rewards.success.head import HeadConfig
from rewards.success.report import Judged, first_call, judge_episodes, recorded, success_report
from rewards.success.report_files import markdown, to_json, write_report
from rollouts.envs.types import Source
from tests.rewards.success.toys import LEFT, demonstrations, episode, failures

POLICY = Source.POLICY
SCRIPT = [
    # place of the square, and what the model said of it
    ([0.1, 0.5, 0.9, 0.9], [0.1, 0.6, 0.95]),  # done from step 1; called at step 1 or, at 0.9, at step 2
    ([0.1, 0.5, 0.5, 0.9], [0.2, 0.99, 0.3]),  # a false call one step before success
    ([0.1, 0.1, 0.1], [0.92, 0.1]),  # a false call in a failure
    ([0.1, 0.9, 0.9], [0.2, 0.3]),  # a success that is missed
]
JUDGED = [
    Judged(episode(places, source=POLICY, seed=i), np.array(says, np.float32))
    for i, (places, says) in enumerate(SCRIPT)
]


def test_frames_at_a_threshold() -> None:
    report = success_report(JUDGED, [0.5], {})
    [rates] = report.frames
    # done: steps 1, 2 of the first, 2 of the second, both of the last; undone: 1 + 2 + 2.
    assert rates.counts == Confusion(true_positives=2, false_positives=2, true_negatives=3, false_negatives=3)
    assert rates.false_positive_rate is not None and rates.false_positive_rate.value == pytest.approx(2 / 5)
    assert rates.false_negative_rate is not None and rates.false_negative_rate.value == pytest.approx(3 / 5)
    assert rates.precision is not None and rates.precision.value == pytest.approx(1 / 2)
    assert rates.recall is not None and rates.recall.value == pytest.approx(2 / 5)
    assert rates.prevalence is not None and rates.prevalence.value == pytest.approx(1 / 2)
    assert 0 <= rates.false_positive_rate.low < 2 / 5 < rates.false_positive_rate.high <= 1


def test_episodes_under_detectors() -> None:
    detectors = {
        "one": (DetectorConfig(threshold=0.9, consecutive=1), {}),
        "two": (DetectorConfig(threshold=0.55, consecutive=2), {}),
        "box": (DetectorConfig(threshold=0.9, consecutive=1), {"right": StateBox((0,), (0.4,), (1.0,))}),
    }
    one, two, box = success_report(JUDGED, [], detectors).episodes
    assert (one.episodes, one.successes, one.ends) == (4, 3, 3)
    assert one.false_ends.value == pytest.approx(2 / 4)
    assert one.misses is not None and one.misses.value == pytest.approx(1 / 3)
    assert one.precision is not None and one.precision.value == pytest.approx(1 / 3)
    assert one.lateness == 1  # done after step 1, seen after step 2
    assert one.lead == 1  # of the false ends, one had its success a step later
    assert (two.ends, two.false_ends.value, two.lateness, two.lead) == (1, 0, 1, None)
    assert (box.ends, box.false_ends.value) == (2, 1 / 4)


def test_the_models_own_threshold_is_asked_for() -> None:
    detectors = {"own": (DetectorConfig(consecutive=1), {})}
    own = success_report(JUDGED, [], detectors, own_threshold=lambda task: {"right": 0.9}[task])
    assert own.episodes[0].ends == 3
    with pytest.raises(SuccessError, match="no threshold of its own"):
        success_report(JUDGED, [], detectors)


def test_the_first_call_is_what_the_gate_says() -> None:
    from rewards.success.detector import Gate

    assert first_call(JUDGED[1], Gate(1, 0, 0.9, None)) == 1
    assert first_call(JUDGED[1], Gate(2, 0, 0.9, None)) is None


def test_each_task_and_all_of_them() -> None:
    other = Judged(episode([0.9, 0.1], LEFT, POLICY), np.array([0.9], np.float32))
    report = success_report([*JUDGED, other], [0.5, 0.9], {"d": (DetectorConfig(threshold=0.5), {})})
    assert [(r.task, r.threshold) for r in report.frames] == [
        (task, t) for task in ("right", "left", "all") for t in (0.5, 0.9)
    ]
    assert [r.task for r in report.episodes] == ["right", "left", "all"]
    left = report.frames[2]
    assert left.false_positive_rate is None  # there was no undone frame, and no number is made up
    for points in report.curves.values():
        rates = [p.false_positive_rate for p in points if p.false_positive_rate is not None]
        assert rates == sorted(rates, reverse=True)


def test_a_report_is_words_numbers_and_a_picture(tmp_path: Path) -> None:
    report = success_report(JUDGED, [0.5, 0.999], {"two in a row": (DetectorConfig(threshold=0.5), {})})
    text = markdown(report)
    assert "| right | 0.5 | 10 | 50.00%" in text
    assert "accuracy" not in text
    assert json.loads(to_json(report))["frames"][0]["counts"]["false_positives"] == 2
    assert json.loads(to_json(report))["frames"][1]["precision"] is None
    paths = write_report(report, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert paths[0].read_text() == text
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"


def test_a_fitted_model_is_judged_on_held_out_episodes() -> None:
    head = HeadConfig(filters=8, kernel=2, steps=150, learning_rate=1e-2)
    model = BackboneModel(BackboneConfig(backbone="random", views=2, shift=1, folds=3, head=head))
    model.fit(frames_of([*demonstrations(6), *failures(6)], FrameConfig()))
    held_out = [*demonstrations(4, seed=7), *failures(4, seed=300)]
    judged = judge_episodes(model, held_out)
    assert [len(item.probabilities) for item in judged] == [len(item) for item in held_out]
    report = success_report(
        judged, [0.5], {"own": (DetectorConfig(consecutive=2), {})}, lambda task: model.threshold(held_out[0].task)
    )
    rates = report.frames[0]
    assert rates.false_positive_rate is not None and rates.false_positive_rate.value < 0.1
    assert rates.recall is not None and rates.recall.value > 0.8


def test_recorded_probabilities_are_judged_as_they_were() -> None:
    watched = episode([0.1, 0.5, 0.9], source=POLICY, detected=[0.25, 0.75])
    assert recorded([watched])[0].probabilities.tolist() == [0.25, 0.75]
    with pytest.raises(SuccessError, match="was not watched"):
        recorded([episode([0.1, 0.5])])


def test_nothing_judged_is_no_report() -> None:
    with pytest.raises(SuccessError, match="no judged episodes"):
        success_report([], [0.5], {})
    with pytest.raises(ValueError, match="2 steps and"):
        Judged(episode([0.1, 0.2, 0.3]), np.zeros(3, np.float32))


def test_counts_add_up_and_rates_are_none_without_frames() -> None:
    one = confusion([True, True, False, False], [True, False, True, False])
    assert one == Confusion(1, 1, 1, 1)
    assert (one + one).precision == 0.5
    empty = Confusion()
    assert empty.false_positive_rate is empty.recall is empty.precision is empty.prevalence is None
    with pytest.raises(ValueError, match="one each"):
        confusion([True], [True, False])
