import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.protocols import Metrics
from align.tracking.samples import SampleRow
from align.tracking.tracker import RunTracker, join

ROW = SampleRow("p", "c", 1.0, "policy", "chosen", 3, "stop", 0)


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class MemorySink:
    name = "memory"

    def __init__(self, fail_open: bool = False, fail_close: bool = False) -> None:
        self.fail_open, self.fail_close = fail_open, fail_close
        self.calls: list[tuple[Any, ...]] = []
        self.rows: dict[int, dict[str, float]] = {}

    def open(self) -> None:
        self.calls.append(("open",))
        if self.fail_open:
            raise OSError("cannot open")

    def phase(self, name: str) -> None:
        self.calls.append(("phase", name))

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        self.calls.append(("samples", step, list(rows)))

    def write(self, step: int, metrics: Metrics) -> None:
        self.calls.append(("write", step))
        self.rows[step] = dict(metrics)

    def close(self, failed: bool = False) -> None:
        self.calls.append(("close", failed))
        if self.fail_close:
            raise OSError("cannot close")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append(("load", state))


def test_phases_and_other_add_up_to_the_step() -> None:
    clock, sink = Clock(), MemorySink()
    with RunTracker([sink], clock) as tracker:
        clock.tick(1.0)
        with tracker.phase("collect"):
            clock.tick(4.0)
        with tracker.phase("learn"):
            clock.tick(2.0)
        with tracker.phase("collect"):
            clock.tick(0.5)
        tracker.log(1)
        clock.tick(3.0)
        tracker.log(2)
    assert sink.rows[1] == {
        "timing_s/collect": 4.5,
        "timing_s/learn": 2.0,
        "timing_s/other": 1.0,
        "timing_s/step": 7.5,
        "perf/elapsed_s": 7.5,
    }
    assert sink.rows[2] == {"timing_s/other": 3.0, "timing_s/step": 3.0, "perf/elapsed_s": 10.5}


def test_a_phase_inside_another_takes_its_time_away() -> None:
    clock, sink = Clock(), MemorySink()
    with RunTracker([sink], clock) as tracker:
        with tracker.phase("sync"):
            clock.tick(1.0)
            with tracker.phase("probe"):
                clock.tick(10.0)
            clock.tick(2.0)
        tracker.log(1)
    assert (sink.rows[1]["timing_s/sync"], sink.rows[1]["timing_s/probe"]) == (3.0, 10.0)
    assert sink.rows[1]["timing_s/step"] == 13.0
    phases = [call[1] for call in sink.calls if call[0] == "phase"]
    assert phases == ["sync", "probe", "sync", ""]


def test_a_phase_that_fails_is_timed_and_left() -> None:
    clock, sink = Clock(), MemorySink()
    with RunTracker([sink], clock) as tracker:
        with pytest.raises(KeyError), tracker.phase("learn"):
            clock.tick(2.0)
            raise KeyError
        clock.tick(1.0)
        tracker.log(1)
    assert (sink.rows[1]["timing_s/learn"], sink.rows[1]["timing_s/other"]) == (2.0, 1.0)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 50), st.floats(0, 50)), max_size=12))
def test_timings_always_add_up(spans: list[tuple[str, float, float]]) -> None:
    clock, sink = Clock(), MemorySink()
    with RunTracker([sink], clock) as tracker:
        for name, inside, after in spans:
            with tracker.phase(name):
                clock.tick(inside)
            clock.tick(after)
        tracker.log(1)
    row = {name: value for name, value in sink.rows[1].items() if name.startswith("timing_s/")}
    step = row.pop("timing_s/step")
    assert sum(row.values()) == pytest.approx(step, abs=1e-9)
    assert min(row.values()) >= 0


def test_join_reduces_by_name() -> None:
    joined = join(
        [
            {"loss/total": 1.0, "optim/grad_norm_max": 2.0, "rollout/length_min": 5.0, "count/a": 3, "b_total": 1},
            {"loss/total": 4.0, "optim/grad_norm_max": 1.0, "rollout/length_min": 4.0, "count/a": 4, "b_total": 2},
            {"only/here": 7.0},
        ]
    )
    assert joined == {
        "loss/total": 2.5,
        "optim/grad_norm_max": 2.0,
        "rollout/length_min": 4.0,
        "count/a": 7.0,
        "b_total": 3.0,
        "only/here": 7.0,
    }
    assert all(type(value) is float for value in joined.values())


@pytest.mark.parametrize("name", ["loss", "x_max", "x_min", "x_total", "count/x"])
@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan)])
def test_one_nan_is_never_hidden(name: str, values: tuple[float, float]) -> None:
    assert math.isnan(join([{name: value} for value in values])[name])


def test_opposite_infinities_are_logged_not_raised() -> None:
    assert math.isnan(join([{"x": math.inf}, {"x": -math.inf}])["x"])


@pytest.mark.parametrize("name", ["step", "nonfinite", "timing_s/collect"])
def test_names_of_the_tracker_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        join([{name: 1.0}])


def test_a_value_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="'label/pairs' is str"):
        join([{"label/pairs": "many"}])  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["step", "other"])
def test_phase_names_of_the_tracker_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name), RunTracker([]).phase(name):
        raise AssertionError("never entered")


def test_samples_are_handed_over_once_and_before_the_numbers() -> None:
    sink = MemorySink()
    tracker = RunTracker([sink])
    tracker.samples([ROW])
    tracker.log(1)
    tracker.log(2)
    assert [call for call in sink.calls if call[0] in ("samples", "write")] == [
        ("samples", 1, [ROW]),
        ("write", 1),
        ("write", 2),
    ]


def test_steps_only_go_forward() -> None:
    tracker = RunTracker([])
    tracker.log(0)
    tracker.log(3)
    with pytest.raises(ValueError, match="step 3 was logged after step 3"):
        tracker.log(3)


def test_state_continues_step_and_elapsed_time_without_the_pause() -> None:
    clock = Clock()
    first = RunTracker([MemorySink()], clock)
    with first:
        clock.tick(5.0)
        first.log(4)
        state = first.state_dict()
    assert state == {"step": 4, "elapsed_s": 5.0, "sinks": {"memory": {"rows": 1}}}
    clock.tick(1000.0)
    sink = MemorySink()
    second = RunTracker([sink], clock)
    second.load_state_dict(state)
    assert ("load", {"rows": 1}) in sink.calls
    with second:
        clock.tick(2.0)
        second.log(5)
    assert sink.rows[5]["perf/elapsed_s"] == 7.0
    assert sink.rows[5]["timing_s/step"] == 2.0


def test_a_sink_that_the_checkpoint_does_not_know_starts_afresh() -> None:
    sink = MemorySink()
    RunTracker([sink]).load_state_dict({"step": 1, "elapsed_s": 0.0, "sinks": {"other": {}}})
    assert sink.calls == []


def test_sinks_learn_how_the_run_ended() -> None:
    good, bad = MemorySink(), MemorySink()
    with RunTracker([good]):
        pass
    with pytest.raises(KeyboardInterrupt), RunTracker([bad]):
        raise KeyboardInterrupt
    assert good.calls[-1] == ("close", False)
    assert bad.calls[-1] == ("close", True)


def test_sinks_that_opened_are_closed_when_a_later_one_does_not() -> None:
    first, second = MemorySink(), MemorySink(fail_open=True)
    with pytest.raises(OSError, match="cannot open"), RunTracker([first, second]):
        raise AssertionError("never entered")
    assert first.calls[-1] == ("close", True)


def test_a_sink_that_fails_to_close_does_not_keep_others_open_nor_hide_the_runs_error() -> None:
    first, second = MemorySink(), MemorySink(fail_close=True)
    with pytest.raises(OSError, match="cannot close"), RunTracker([first, second]):
        pass
    assert first.calls[-1] == ("close", False)
    with pytest.raises(KeyError), RunTracker([MemorySink(fail_close=True)]):
        raise KeyError
