"""Language models and robots go through the same function."""

from pathlib import Path
from typing import Any

import pytest

import align.loop
from align.build import looping
from align.cli import main
from align.learners.calql import CalQLLearner
from align.learners.preference import PreferenceLearner

SMOKE = Path(__file__).resolve().parents[2] / "recipes" / "smoke"


def test_text_and_robot_share_every_line_of_the_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    loop = looping.loop
    assert loop is align.loop.run

    def watched(parts: Any, *arguments: Any) -> None:
        seen.append(type(parts.learner))
        loop(parts, *arguments)

    monkeypatch.setattr(looping, "loop", watched)
    quick = ["tracking.wandb.mode=disabled", "schedule.total_steps=2"]
    text = ["run", str(SMOKE / "dpo_tiny.yaml"), f"run.dir={tmp_path / 'text'}", *quick, "schedule.offline_steps=2"]
    assert main(text) == 0
    sizes = ["learner.bc_steps=50", "mixer.offline_updates=50", "evaluation.films=0", "schedule.offline_steps=1"]
    assert main(["run", str(SMOKE / "robot.yaml"), f"run.dir={tmp_path / 'robot'}", *quick, *sizes]) == 0
    assert seen == [PreferenceLearner, CalQLLearner]
    for kind in ("text", "robot"):
        assert (tmp_path / kind / "checkpoints" / "step-000002" / "manifest.json").exists()
