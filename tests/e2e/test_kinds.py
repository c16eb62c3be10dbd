"""Recipes of other kinds as whole programs: a supervised warm start, the theorem at work."""

import json
from pathlib import Path

import pytest

from align.tracking.metrics import undocumented
from tests.e2e.programs import finish, metrics

pytestmark = pytest.mark.e2e


@pytest.mark.slow
def test_a_warm_start_trains_and_its_policy_can_be_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    done = finish("./recipes/smoke/sft_tiny.yaml", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    rows = metrics(folder)
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert losses[-1] < losses[0] - 0.5
    assert undocumented(name for row in rows for name in row if name not in ("step", "nonfinite")) == []
    assert json.loads((folder / "summary.json").read_text())["heldout"]["problems"] == 8
    assert "go on with XPO" in done.stdout
    again = finish("./recipes/smoke/sft_tiny.yaml", f"run.dir={folder}")
    assert "this run is finished" in again.stdout
    follow = finish(
        "./recipes/smoke/xpo_tiny.yaml",
        f"run.dir={tmp_path / 'xpo'}",
        f"model.path={folder}/policy",
        "schedule={total_steps: 1}",
    )
    assert follow.returncode == 0, follow.stderr


def test_the_theorem_in_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "bandit"
    done = finish("./recipes/bandit.yaml", f"run.dir={folder}", "sequences=null", "bandit.runs=500")
    assert done.returncode == 0, done.stderr
    last = metrics(folder)[-1]
    assert undocumented(name for name in last if name not in ("step", "nonfinite")) == []
    stuck = {arm: last[f"bandit/{arm}/stuck"] for arm in ("online_dpo", "xpo", "wrong_sign")}
    # Online DPO in most runs, XPO in none, the wrong sign worse than DPO.
    assert stuck["online_dpo"] > 0.5
    assert stuck["xpo"] == 0
    assert stuck["wrong_sign"] > stuck["online_dpo"]
    assert (folder / "bandit.png").stat().st_size > 10_000
    assert "online_dpo" in done.stdout
    assert (folder / "wandb").exists()
