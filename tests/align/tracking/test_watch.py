"""The watch for over-optimisation: drawn where a check stands beside the reward, and nowhere else."""

import json
from pathlib import Path

from PIL import Image

from align.tracking.jsonl import METRICS_FILE
from align.tracking.watch import WATCH_FILE, plot_watch, reward_name, watched


def write(folder: Path, rows: list[dict[str, float]]) -> None:
    lines = [json.dumps({"step": step, **row}) for step, row in enumerate(rows)]
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")


def test_a_run_without_a_check_has_no_picture(tmp_path: Path) -> None:
    write(tmp_path, [{"reward/mean": 0.1, "eval/accuracy": 0.2}])
    assert plot_watch(tmp_path) is None
    assert not (tmp_path / WATCH_FILE).exists()


def test_reward_and_accuracy_are_drawn_and_what_is_missing_is_left_out(tmp_path: Path) -> None:
    rows = [{"eval/accuracy": 0.1, "eval/reward_mean": -3.0}] + [
        {"reward/raw_mean": -3 + step / 5, "reward/mean": 0.0, "reward/verified_mean": 0.1 + step / 50}
        for step in range(8)
    ]
    rows[4]["reward/verified_auc"] = 0.8
    write(tmp_path, rows)
    picture = plot_watch(tmp_path, "xpo")
    assert picture == tmp_path / WATCH_FILE
    with Image.open(picture) as image:
        assert image.size[0] > 1000
        # Something is drawn in each third of the picture.
        thirds = [
            image.convert("L").crop((i * image.size[0] // 3, 0, (i + 1) * image.size[0] // 3, image.size[1]))
            for i in range(3)
        ]
        assert all(min(third.tobytes()) < 100 for third in thirds)


def test_the_raw_reward_is_shown_where_it_was_normalised() -> None:
    assert reward_name([(1, {"reward/mean": 0.0})]) == "reward/mean"
    assert reward_name([(1, {"reward/mean": 0.0, "reward/raw_mean": -2.0})]) == "reward/raw_mean"
    assert not watched([(1, {"reward/mean": 0.0})])
