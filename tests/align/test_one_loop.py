"""Language models and robots go through the same function."""

import sys
from pathlib import Path

from tests.e2e.programs import finish

# A program of its own: a run redirects logs and warnings of its whole process.
PROGRAM = """
import sys

import align.loop
from align.build import looping
from align.cli import main

seen = []
loop = looping.loop
assert loop is align.loop.run

def watched(parts, *arguments):
    seen.append(type(parts.learner).__name__)
    loop(parts, *arguments)

looping.loop = watched
quick = ["tracking.wandb.mode=disabled", "schedule.total_steps=2"]
text = ["recipes/smoke/dpo_tiny.yaml", f"run.dir={sys.argv[1]}/text", *quick, "schedule.offline_steps=2"]
assert main(text) == 0
sizes = ["learner.bc_steps=50", "mixer.offline_updates=50", "evaluation.films=0", "schedule.offline_steps=1"]
assert main(["recipes/smoke/robot.yaml", f"run.dir={sys.argv[1]}/robot", *quick, *sizes]) == 0
print("LEARNERS", *seen)
"""


def test_text_and_robot_share_every_line_of_the_loop(tmp_path: Path) -> None:
    done = finish(sys.executable, "-c", PROGRAM, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LEARNERS PreferenceLearner CalQLLearner"
    for kind in ("text", "robot"):
        assert (tmp_path / kind / "checkpoints" / "step-000002" / "manifest.json").exists()
