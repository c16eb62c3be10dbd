import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.errors import UserError
from align.tracking.jsonl import JsonlSink, decode, encode, read_metrics
from align.tracking.samples import SampleRow
from align.tracking.tracker import RunTracker

ROW = SampleRow("2 + 2?", "4\nyes", 1.0, "policy", "chosen", 3, "stop", 0)
NAMES = st.text("abc/_", min_size=1).filter(lambda name: name not in ("step", "nonfinite"))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_when_the_step_is_over(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.write(0, {"b": 2.0, "a": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "a": 1.0, "b": 2.0}\n'
    sink.samples(1, [ROW, ROW])
    assert len(lines(tmp_path / "samples.jsonl")) == 2
    assert lines(tmp_path / "samples.jsonl")[0] == {
        "step": 1, "prompt": "2 + 2?", "completion": "4\nyes", "reward": 1.0, "origin": "policy", "verdict": "chosen",
        "tokens": 3, "finish": "stop", "policy_version": 0,
    }  # fmt: skip


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    JsonlSink(tmp_path).write(3, {"loss": math.nan, "norm": math.inf, "low": -math.inf, "ok": 1.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {
        "step": 3, "loss": None, "low": None, "norm": None, "ok": 1.5,
        "nonfinite": [["loss", "nan"], ["low", "-inf"], ["norm", "inf"]],
    }  # fmt: skip


@given(st.integers(0, 10**6), st.dictionaries(NAMES, st.floats()))
def test_reading_gives_back_what_was_written(step: int, metrics: dict[str, float]) -> None:
    read_step, read = decode(json.loads(json.dumps(encode(step, metrics), allow_nan=False)))
    assert read_step == step
    assert {name: repr(value) for name, value in read.items()} == {name: repr(value) for name, value in metrics.items()}


def steps(folder: Path, first: int, last: int, state: dict[str, object] | None) -> dict[str, object]:
    """Logs steps and returns the state as a checkpoint after each even step would hold it."""
    sink = JsonlSink(folder)
    if state is not None:
        sink.load_state_dict(state)
    checkpoint: dict[str, object] = {}
    for step in range(first, last + 1):
        sink.samples(step, [ROW])
        sink.write(step, {"loss": step / 3})
        if step % 2 == 0:
            checkpoint = sink.state_dict()
    sink.close()
    return checkpoint


@pytest.mark.parametrize("torn", [b"", b'{"step": 5, "lo', "héé".encode()[:-1]])
def test_a_resumed_file_equals_one_that_was_never_stopped(tmp_path: Path, torn: bytes) -> None:
    steps(tmp_path / "whole", 0, 9, None)
    killed = tmp_path / "killed"
    checkpoint = steps(killed, 0, 5, None)  # the checkpoint is of step 4
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (killed / name).open("ab") as file:
            file.write(torn)
    steps(killed, 5, 9, checkpoint)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_tracker_carries_the_offset(tmp_path: Path) -> None:
    tracker = RunTracker([JsonlSink(tmp_path)])
    tracker.log(1, {"loss": 1.0})
    state = json.loads(json.dumps(tracker.state_dict()))
    tracker.log(2, {"loss": 2.0})
    tracker.close(failed=True)
    resumed = RunTracker([JsonlSink(tmp_path)])
    resumed.load_state_dict(state)
    resumed.log(2, {"loss": 20.0})
    assert [(row["step"], row["loss"]) for row in lines(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 20.0)]


def test_lines_without_a_checkpoint_are_moved_aside(tmp_path: Path) -> None:
    for attempt in (1.0, 2.0, 3.0):
        JsonlSink(tmp_path).write(0, {"attempt": attempt})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 0, "attempt": 3.0}]
    assert lines(tmp_path / "metrics.jsonl.old-1") == [{"step": 0, "attempt": 1.0}]
    assert lines(tmp_path / "metrics.jsonl.old-2") == [{"step": 0, "attempt": 2.0}]


@pytest.mark.parametrize("content", [None, b'{"step": 0', b"x" * 40 + b"\n"])
def test_a_file_that_lost_lines_is_refused(tmp_path: Path, content: bytes | None) -> None:
    sink = JsonlSink(tmp_path)
    sink.write(0, {"loss": 1.0})
    state = sink.state_dict()
    (tmp_path / "metrics.jsonl").unlink()
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="put the file back, or start a new run folder"):
        JsonlSink(tmp_path).load_state_dict(state)
    if content is not None:
        assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_full_disk_leaves_whole_lines_and_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonlSink(tmp_path)
    sink.write(0, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real, calls = os.write, []

    def half_then_full(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(handle, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(UserError, match=r"no space left for .*metrics\.jsonl"):
        sink.write(1, {"loss": 2.0})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    sink.write(1, {"loss": 2.0})
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [0, 1]


def test_half_a_character_does_not_end_a_run(tmp_path: Path) -> None:
    broken = SampleRow("p", "\ud83d", math.nan, "policy", "", 1, "length", 0)
    JsonlSink(tmp_path).samples(1, [broken])
    row = lines(tmp_path / "samples.jsonl")[0]
    assert (row["completion"], row["reward"]) == ("?", None)


def test_readers_leave_out_a_torn_last_line_and_name_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": null, "nonfinite": [["a", "inf"]]}\n{"step": 2')
    assert list(read_metrics(path)) == [(1, {"a": math.inf})]
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a line of metrics"):
        list(read_metrics(path))
