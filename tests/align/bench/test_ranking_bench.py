"""The experiment with a policy discriminator over trajectories: a whole small one, and its table by hand."""

import json
from pathlib import Path

import pytest

from align.bench import ranking
from align.recipe.load import load
from align.recipe.robot import RobotRecipe

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_it_asks_about_policies_that_were_in_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load(ROOT / "recipes" / "smoke" / "robot.yaml")
    assert isinstance(recipe, RobotRecipe)
    ranking.main(recipe, [0, 1], source="state", policies=6, held_out=4, attempts=2, out=tmp_path)
    report = json.loads((tmp_path / "ranking.json").read_text())
    assert list(report["results"]) == ["discriminator", "trajectory L2", "final L2"]
    values = [v for row in report["results"].values() for v in row["pair_accuracy"]]
    assert len(values) == 6 and all(0 <= v <= 1 for v in values)
    assert (report["scene"], report["seeds"], len(report["success"])) == ("point", [0, 1], 2)
    assert "6 policies learnt from, 4 others asked about, 2 attempts" in capsys.readouterr().out


def test_means_have_intervals_and_what_a_seed_cannot_tell_has_none() -> None:
    text = ranking.render(
        {
            "scene": "point", "source": "state", "policies": 6, "held_out": 4, "attempts": 2, "seeds": [0, 1],
            "success": [0.4, 0.6], "commit": "c", "cpus": 2, "machine": "m",
            "results": {"final L2": {"pair_accuracy": [0.7, 0.9], "success_auroc": [0.9, 0.9],
                                     "policy_spearman": [None, 0.5]}},
        }
    )  # fmt: skip
    # Student's t with one degree of freedom: 12.706 times 0.1414 over root 2.
    assert "| final L2 | 0.800 [-0.471, 2.071] | 0.900 [0.900, 0.900] | - |" in text
    assert "means over seeds 0 to 1" in text
