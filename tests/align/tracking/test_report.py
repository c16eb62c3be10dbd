import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from align.tracking.report import Outcome, summary
from rewards.intervals import wilson

BEFORE = [1.0] * 4 + [0.0] * 16
AFTER = [1.0] * 14 + [0.0] * 6


def shown(outcome: Outcome, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    summary(outcome, Console(file=file, force_terminal=terminal, width=width, highlight=False))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def outcome(folder: Path, before: list[float] | None, after: list[float] | None) -> Outcome:
    return Outcome("xpo", "hub:org/[model]", folder, 24, 11.5, before, after, {"train longer": "align run x.yaml a=48"})


def test_numbers_by_hand(tmp_path: Path) -> None:
    facts = summary(outcome(tmp_path, BEFORE, AFTER), Console(file=io.StringIO()))
    heldout = facts["heldout"]
    assert (heldout["problems"], heldout["before"]["accuracy"], heldout["after"]["accuracy"]) == (20, 0.2, 0.7)
    assert heldout["ratio"] == pytest.approx(3.5)
    assert heldout["after"]["interval_95"] == list(wilson(14, 20))
    # Ten of 20 improved, none got worse: (10 / 22) -+ 1.96 * sqrt((12/22 - (10/22)^2) / 22) = 0.4545 -+ 0.2432.
    assert heldout["difference"]["accuracy"] == 0.5
    assert heldout["difference"]["interval_95"] == pytest.approx([0.2113, 0.6978], abs=1e-3)
    assert heldout["difference"]["excludes_zero"] is True
    assert json.loads((tmp_path / "summary.json").read_text()) == facts


def test_the_text_says_what_happened_where_things_are_and_what_is_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    text = shown(outcome(tmp_path, BEFORE, AFTER), terminal=False)
    assert text == (tmp_path / "summary.md").read_text()
    assert "# xpo: 24 steps in 11.5 minutes" in text
    assert "Held-out accuracy on 20 problems, better: the interval excludes zero." in text
    assert "| before | 0.200 | [0.081, 0.416] |" in text
    assert "| ratio | 3.50 x |  |" in text
    assert "- `metrics.jsonl`: every number" in text
    assert "- `summary.md`: this summary" in text
    assert "curves.png" not in text
    assert "- train longer: `align run x.yaml a=48`" in text
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in text


def test_the_panel_shows_the_same_and_keeps_commands_whole(tmp_path: Path) -> None:
    text = shown(outcome(tmp_path, BEFORE, AFTER), terminal=True)
    assert "xpo: 24 steps in 11:30" in text
    for expected in ("0.200", "0.700", "+0.500", "3.50 x", "better: the interval excludes zero", "summary.md"):
        assert expected in text
    assert "    align run x.yaml a=48 " in text
    assert max(len(line) for line in text.splitlines()) == 80


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (AFTER, BEFORE, "worse: the interval excludes zero"),
        (BEFORE, BEFORE, "no clear change: the interval of the difference holds zero"),
        ([0.0] * 20, AFTER, "better: the interval excludes zero"),
    ],
)
def test_verdicts(tmp_path: Path, before: list[float], after: list[float], verdict: str) -> None:
    assert verdict in shown(outcome(tmp_path, before, after), terminal=False)
    assert verdict in shown(outcome(tmp_path, before, after), terminal=True, width=120)


def test_no_ratio_to_nothing(tmp_path: Path) -> None:
    facts = summary(outcome(tmp_path, [0.0] * 20, AFTER), Console(file=io.StringIO()))
    assert facts["heldout"]["ratio"] is None
    assert "none (0 before)" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("terminal", [True, False])
def test_without_held_out_problems(tmp_path: Path, terminal: bool) -> None:
    text = shown(outcome(tmp_path, None, None), terminal)
    assert "Held-out accuracy was not measured" in text
    assert json.loads((tmp_path / "summary.json").read_text())["heldout"] is None


def test_a_write_that_fails_leaves_the_old_summary_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary(outcome(tmp_path, BEFORE, AFTER), Console(file=io.StringIO()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        summary(outcome(tmp_path, AFTER, BEFORE), Console(file=io.StringIO()))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_best_iterate_is_named_with_its_caveat(tmp_path: Path) -> None:
    facts = summary(replace(outcome(tmp_path, BEFORE, AFTER), best=(10, 0.5)), Console(file=io.StringIO(), width=100))
    assert facts["heldout"]["best"] == {"step": 10, "accuracy": 0.5}
    assert "| best iterate | 0.500 | step 10; chosen by these problems |" in (tmp_path / "summary.md").read_text()
