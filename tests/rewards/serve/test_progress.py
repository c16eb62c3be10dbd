"""What a long job says: a bar in a terminal, lines elsewhere."""

import io
import re

from rewards.serve.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_now_and_then_and_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    bar = ProgressBar("scoring", out, plain_every_s=10, clock=clock)
    bar.start(1000, 400)
    for seconds, items, failed in ((4, 80, 0), (8, 80, 2), (4, 40, 0), (16, 400, 0)):
        clock.now += seconds
        bar.advance(items, failed)
    bar.close()
    # 160 items in 12 s at the first line; 440 are left. The rate is that of this run alone.
    assert out.getvalue().splitlines() == [
        "scoring: going on after 400 of 1000 items",
        "scoring: 560 of 1000 items, 13.3 items/s, 2 failed, 0:33 left",
        "scoring: 1000 of 1000 items, 18.8 items/s, 2 failed",
    ]


def test_items_have_the_name_that_is_given_to_them() -> None:
    out, clock = io.StringIO(), Clock()
    bar = ProgressBar("point", out, unit="episodes", clock=clock)
    bar.start(4, 2)
    clock.now += 4
    bar.advance(2, 0)
    assert out.getvalue().splitlines() == [
        "point: going on after 2 of 4 episodes",
        "point: 4 of 4 episodes, 0.5 episodes/s",
    ]


def test_hours_are_told_as_hours() -> None:
    out, clock = io.StringIO(), Clock()
    bar = ProgressBar("scoring", out, plain_every_s=0, clock=clock)
    bar.start(10_000, 0)
    clock.now += 1
    bar.advance(1, 0)
    assert out.getvalue() == "scoring: 1 of 10000 items, 1 items/s, 2:46:39 left\n"


def test_a_terminal_shows_a_bar(monkeypatch: object) -> None:
    out = Terminal()
    bar = ProgressBar("scoring", out)
    bar.start(10, 0)
    bar.advance(10, 1)
    bar.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "scoring" in shown and "10/10" in shown and "1 failed" in shown
    # The cursor is shown again.
    assert out.getvalue().rstrip().endswith("\x1b[?25h")
