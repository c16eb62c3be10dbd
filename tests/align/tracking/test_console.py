import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from align.tracking.console import ConsoleSink
from align.tracking.samples import SampleRow

ROOT = Path(__file__).parents[3]
ROW = SampleRow("2 + 2?", "[bold]4[/bold]\n\x1b[31mred\x07", 1.0, "policy", "chosen", 3, "stop", 0)
STEP = {
    "reward/mean": 0.4, "objective/kl": 1.25, "loss/total": 0.61, "label/pairs": 30.0, "timing_s/learn": 6.0,
    "timing_s/collect": 3.0, "timing_s/other": 1.0, "timing_s/step": 10.0, "perf/elapsed_s": 20.0,
}  # fmt: skip
EVAL = {"eval/accuracy": 0.405, "eval/accuracy_low": 0.3393, "eval/accuracy_high": 0.4743}

# Runs steps 0 to 3 in a terminal; "boom" and "hang" end it early.
SCRIPT = """
import sys, time
from align.tracking.console import ConsoleSink
from align.tracking.samples import SampleRow
from align.tracking.tracker import RunTracker

sink = ConsoleSink(3, {"recipe": "xpo", "run": "runs/[bold]x"}, table_every=2)
with RunTracker([sink]) as tracker:
    for step in range(4):
        with tracker.phase("learn"):
            tracker.samples([SampleRow("2 + 2?", "[bold]4[/bold] \\x1b[31mred", 1.0, "policy", "chosen", 3, "stop", 0)])
        print("stray print")
        tracker.log(step, {"reward/mean": 0.5, "eval/accuracy": 0.25 * step})
        if sys.argv[1] == "boom" and step == 2:
            raise RuntimeError("boom")
    if sys.argv[1] == "hang":
        sys.stderr.write("ready\\n")
        time.sleep(60)
"""


def plain(total: int = 24, **options: int) -> tuple[ConsoleSink, io.StringIO]:
    file = io.StringIO()
    return ConsoleSink(total, {"recipe": "xpo", "model": "m", "run": "runs/xpo"}, file=file, **options), file


def in_terminal(mode: str, width: int = 100, **environment: str) -> tuple[str, int]:
    """What a terminal of ``width`` columns receives, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env
    )
    os.close(theirs)
    received = b""
    try:
        if mode == "hang":
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end was closed
                break
            if not data:
                break
            received += data
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return received.decode(), process.returncode


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def unwrapped(text: str) -> str:
    return " ".join(visible(text).split())


def test_without_a_terminal_a_step_is_one_plain_line() -> None:
    sink, file = plain()
    sink.open()
    sink.phase("learn")
    sink.write(6, STEP | EVAL)
    sink.close()
    header, line = file.getvalue().splitlines()
    assert header == "recipe xpo  model m  run runs/xpo"
    assert line == (
        "step 6/24  reward 0.400  kl 1.25  loss 0.610  pairs 30  held-out accuracy 0.405 [0.34, 0.47]  "
        "10 s (learn 60%)  3:00 left"
    )


def test_forced_colours_do_not_make_a_log_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    sink, file = plain()
    sink.open()
    sink.write(1, STEP)
    sink.close()
    assert len(file.getvalue().splitlines()) == 2
    assert "\x1b[?25l" not in file.getvalue()


def test_step_zero_has_neither_reward_nor_an_estimate() -> None:
    sink, file = plain()
    sink.write(0, {"timing_s/evaluate": 41.0, "timing_s/step": 41.0} | EVAL)
    assert file.getvalue() == "step 0/24  held-out accuracy 0.405 [0.34, 0.47]  41 s (evaluate 100%)\n"


def test_samples_come_every_so_many_steps_pairs_first_after_their_step() -> None:
    sink, file = plain(table_every=2, table_rows=1)
    lone = SampleRow("p", "c", 0.0, "policy", "", 3, "stop", 0)
    for step in range(1, 5):
        sink.samples(step, [lone, ROW])
        sink.write(step, {})
    shown = [line for line in file.getvalue().splitlines() if line.startswith("sample")]
    assert shown == [
        f"sample of step {step}: policy chosen, reward 1: 2 + 2? => [bold]4[/bold] ↵ red" for step in (1, 2, 4)
    ]
    assert file.getvalue().startswith("step 1/24")


def test_no_samples_when_switched_off() -> None:
    sink, file = plain(table_every=0)
    sink.samples(1, [ROW])
    sink.write(1, {})
    assert "sample" not in file.getvalue()


def test_trouble_is_said_once() -> None:
    sink, file = plain()
    sink.write(1, {"loss/total": float("nan")})
    sink.write(2, {"loss/total": float("nan")})
    assert file.getvalue().count("warning: A metric is not finite") == 1


def test_state_keeps_the_history_and_what_was_warned_of() -> None:
    first, _ = plain()
    first.write(1, STEP | EVAL | {"loss/total": float("inf")})
    second, file = plain()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    second.write(2, {"loss/total": float("nan")})
    assert "warning" not in file.getvalue()


def test_an_encoding_without_our_characters_does_not_end_a_run() -> None:
    raw = io.BytesIO()
    sink = ConsoleSink(2, {"run": "größe"}, file=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    sink.open()
    sink.samples(1, [ROW])
    sink.write(1, {"reward/mean": 0.5})
    sink.close()
    assert raw.getvalue().startswith(b"run gr??e\n")


def test_a_terminal_shows_header_steps_samples_and_a_live_footer() -> None:
    text, code = in_terminal("end")
    assert code == 0
    seen = visible(text)
    assert "Polestar" in seen
    assert "runs/[bold]x" in seen
    assert "held-out accuracy" in seen
    assert "[bold]4[/bold] red" in seen
    assert "stray print" in seen
    assert "3/3" in seen
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("mode", "step"), [("boom", 3), ("hang", 4)])
def test_an_error_or_ctrl_c_gives_the_terminal_back(mode: str, step: int) -> None:
    text, code = in_terminal(mode)
    assert code != 0
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert f"stopped in step {step} of 3: the same command goes on from the last checkpoint" in unwrapped(text)


@pytest.mark.parametrize("width", [30, 45, 60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    text, code = in_terminal("end", width)
    assert code == 0
    assert max(len(line) for line in re.split(r"[\r\n]+", visible(text))) <= width


def test_the_width_is_that_of_the_terminal_given_not_of_the_standard_streams() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 123, 0, 0))
    with os.fdopen(theirs, "w") as file:
        code = (
            "import os; from align.tracking.console import terminal_console\n"
            f"print(terminal_console(os.fdopen({theirs}, 'w')).width)"
        )
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            check=True, pass_fds=[file.fileno()], env=env | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
        )  # fmt: skip
    os.close(ours)
    assert done.stdout == "123\n"


def test_a_run_that_never_opened_says_nothing_of_its_steps() -> None:
    sink, file = plain()
    sink.close(failed=True)
    assert file.getvalue() == ""


def test_a_dumb_terminal_gets_plain_lines() -> None:
    text, code = in_terminal("end", TERM="dumb")
    assert code == 0
    assert "\x1b" not in text
    assert "step 3/3" in text
