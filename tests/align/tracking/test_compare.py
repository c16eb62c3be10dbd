"""Groups of runs side by side: pairs add up, intervals are over seeds, the difference is paired."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from align.errors import UserError
from align.tracking.compare import compare_table, groups, plot_comparison, read_curve, shared_steps


def run(folder: Path, accuracies: dict[int, float]) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for step in range(max(accuracies) + 1):
        row: dict[str, float] = {"step": step}
        if step:
            row["label/pairs"] = 10
        if step in accuracies:
            row["eval/accuracy"] = accuracies[step]
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_pairs_add_up_until_each_evaluation(tmp_path: Path) -> None:
    curve = read_curve(run(tmp_path / "a", {0: 0.1, 2: 0.2, 4: 0.4}))
    assert dict(curve.pairs) == {0: 0, 2: 20, 4: 40}
    assert dict(curve.accuracy) == {0: 0.1, 2: 0.2, 4: 0.4}


def test_only_shared_steps_are_compared_and_the_difference_is_paired(tmp_path: Path) -> None:
    words = []
    for label, shift in (("xpo", 0.1), ("dpo", 0.0)):
        for seed, level in enumerate((0.2, 0.4)):
            extra = {6: 0.9} if label == "xpo" else {}
            folder = run(tmp_path / f"{label}-{seed}", {0: level, 4: level + shift, **extra})
            words.append(f"{label}={folder}")
    curves = groups(words)
    assert shared_steps(curves) == [0, 4]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(compare_table(curves))
    text = console.export_text()
    # Both seeds differ by 0.1 exactly: the paired interval has no width, though the groups' own are wide.
    assert "+0.100 [+0.100, +0.100]" in text
    assert plot_comparison(curves, tmp_path / "c.png").stat().st_size > 5000


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LABEL=FOLDER"):
        groups(["runs/a"])
    with pytest.raises(UserError, match="give the folder of a run"):
        groups([f"a={tmp_path / 'nowhere'}"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text('{"step": 1, "label/pairs": 3}\n')
    with pytest.raises(UserError, match="no held-out accuracy"):
        groups([f"a={tmp_path / 'empty'}"])
    one, other = run(tmp_path / "one", {1: 0.1}), run(tmp_path / "other", {2: 0.1})
    with pytest.raises(UserError, match="share no step"):
        shared_steps(groups([f"a={one}", f"b={other}"]))
