"""The report of a robot recipe over seeds: means and intervals by hand, paired differences, what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.bench import robot
from align.errors import UserError


def run(variant: str, seed: int, offline: int, online: int) -> dict[str, Any]:
    def phase(step: int, done: int) -> dict[str, Any]:
        return {"step": step, "success": {"chain": {"successes": done, "attempts": 10, "interval_95": [0, 1]}}}

    return {
        "variant": variant,
        "seed": seed,
        "minutes": 5.0 + seed,
        "interventions_per_100_attempts": 2.0,
        "phases": {"offline": phase(4, offline), "online": phase(8, online)},
    }


def report(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": "r.yaml", "overrides": [], "runs": list(runs), "commit": "c", "workers": 2, "cpus": 2, "machine": "m",
    }  # fmt: skip


def test_variants_stand_beside_each_other() -> None:
    runs = [run("recipe", 0, 2, 8), run("recipe", 1, 4, 10), run("CQL", 0, 2, 7), run("CQL", 1, 4, 9)]
    text = robot.render(report(*runs))
    assert "differences of the last iterates to recipe" in text
    row = next(line for line in text.splitlines() if line.startswith("| CQL |"))
    # No imitation and no best here; online 0.7 and 0.9, each a tenth below the recipe's.
    assert row.split(" | ")[1:6] == ["", "0.30 [-0.97, 1.57]", "0.80 [-0.47, 2.07]", "", "-0.10 [-0.10, -0.10]"]
    assert row.endswith("| 2.0 [2.0, 2.0] | 5.0 to 6.0 |")
    assert "differences of the last iterates" not in robot.render(report(*runs[:2]))


def test_means_and_paired_differences() -> None:
    text = robot.render(report(run("recipe", 0, 2, 8), run("recipe", 1, 4, 10)))
    # Student's t with one degree of freedom: 12.706 times 0.1 (offline and online deviate by 0.1414 each over root 2).
    assert "| offline | 0.30 [-0.97, 1.57] |" in text
    assert "| online | 0.90 [-0.37, 2.17] |" in text
    assert "| online - offline | +0.60 [+0.60, +0.60] |" in text
    assert "5.0 to 6.0 minutes a run" in text


def test_runs_that_are_there_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        folder = tmp_path / "true_reward" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(run("", seed, 1, 9)))
    assert robot.main(Path("none.yaml"), [0, 1], ["true reward"], tmp_path, overrides=(), workers=1) == 0
    assert "**true reward**" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "robot.json").read_text())["runs"]) == 2


def test_a_run_that_fails_is_one_line_and_nothing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe, seed 0 ended with 2: .*none.yaml"):
        robot.main(tmp_path / "none.yaml", [0], ["recipe"], tmp_path / "out", overrides=(), workers=1)
    assert not (tmp_path / "out" / "robot.json").exists()


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown variant 'magic'"):
        robot.main(Path("r.yaml"), [0], ["magic"], tmp_path, overrides=(), workers=1)
