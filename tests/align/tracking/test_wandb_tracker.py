import functools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.errors import UserError
from align.tracking.samples import SampleRow
from align.tracking.wandb_tracker import WandbSink

ROW = SampleRow("2 + 2?", "4", 1.0, "policy", "chosen", 3, "stop", 0)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The sink sets defaults of its own in the environment; they must not outlive a test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    yield
    import wandb

    wandb.teardown()


@functools.cache
def records(run: Path) -> list[dict[str, Any]]:
    """What was logged, as W&B's own reader sees it; the run is over by then."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", str(run)], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def items(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records(run) if record["type"] == kind]


def test_an_offline_run_keeps_everything_in_the_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    sink = WandbSink(folder, project="proj", title="xpo", config={"learner": {"loss": {"beta": 0.1}}}, kl_limit=5.0)
    sink.open()
    sink.write(0, {"eval/accuracy": 0.25})
    sink.samples(1, [ROW])
    sink.write(1, {"loss/total": 0.5, "objective/kl": 9.0})
    sink.write(2, {"loss/total": math.nan, "label/pairs": 0.0, "label/ties": 48.0, "objective/kl": 9.0})
    sink.close()
    sink.close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not (tmp_path / "home").exists()

    (run,) = (folder / "wandb").glob("offline-run-*")
    started = items(run, "run")[0]
    assert (started["project"], started["display_name"]) == ("proj", "xpo")
    assert started["config"]["update"]["learner"] == {"loss": {"beta": 0.1}}
    assert started["run_id"] == (folder / "wandb" / "run_id").read_text().strip()
    history = [entry["item"] for entry in items(run, "history")]
    assert [(row["step"], row["_step"]) for row in history] == [(0, 0), (1, 1), (2, 2)]
    assert (history[0]["eval/accuracy"], history[1]["loss/total"], history[2]["loss/total"]) == (0.25, 0.5, "NaN")
    assert {"glob_name": "*", "step_metric": "step"}.items() <= items(run, "metric")[1].items()
    assert [alert["title"] for alert in items(run, "alert")] == [
        "KL is high", "A metric is not finite", "All pairs are tied",
    ]  # fmt: skip
    (table,) = run.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[1, "2 + 2?", "4", 1.0, "policy", "chosen", 3, "stop", 0]]
    assert items(run, "exit")[0].get("exit_code", 0) == 0


def test_a_resumed_run_keeps_its_id_and_its_alerts(tmp_path: Path) -> None:
    bad = {"objective/kl": 99.0}
    first = WandbSink(tmp_path)
    first.open()
    first.write(1, bad)
    state = json.loads(json.dumps(first.state_dict()))
    first.close(failed=True)
    # Another folder, as when a checkpoint is copied: the checkpoint's id wins over a new one.
    for folder in (tmp_path, tmp_path / "copy"):
        folder.mkdir(exist_ok=True)
        second = WandbSink(folder)
        second.load_state_dict(state)
        second.open()
        second.write(2, bad)
        second.close()
    runs = sorted(tmp_path.rglob("offline-run-*"))
    assert len(runs) == 3
    assert {items(run, "run")[0]["run_id"] for run in runs} == {state["run_id"]}
    by_step = {items(run, "history")[0]["item"]["step"]: run for run in runs}
    assert len(items(by_step[1], "alert")) == 1
    assert items(by_step[2], "alert") == []
    assert items(by_step[1], "exit")[0]["exit_code"] == 1


def test_a_run_killed_before_its_first_checkpoint_keeps_its_id_too(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        sink = WandbSink(tmp_path)
        sink.open()
        ids.append(sink.state_dict()["run_id"])
        sink.close()
    assert ids[0] == ids[1] != ""


def test_loading_another_id_after_the_start_changes_over(tmp_path: Path) -> None:
    sink = WandbSink(tmp_path)
    sink.open()
    sink.load_state_dict({"run_id": "abcd1234", "alerts": []})
    sink.write(1, {"loss/total": 1.0})
    sink.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*-abcd1234")
    assert [entry["item"]["step"] for entry in items(run, "history")] == [1]


def test_a_picture_and_a_video_are_in_the_history_of_their_step(tmp_path: Path) -> None:
    import imageio.v2 as imageio
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    FigureCanvasAgg(figure)
    figure.savefig(tmp_path / "p.png")
    imageio.mimwrite(tmp_path / "v.mp4", [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 128, 255)], fps=5)
    sink = WandbSink(tmp_path)
    sink.open()
    sink.write(1, {"loss/total": 2.0})
    sink.media("curve", tmp_path / "p.png", 2)
    sink.media("films/open", tmp_path / "v.mp4", 2)
    sink.write(2, {"loss/total": 1.0})
    sink.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    last = [entry["item"] for entry in items(run, "history")][-1]
    assert last["step"] == 2
    assert last["curve._type"] == "image-file"
    assert last["films/open._type"] == "video-file"
    (kept,) = (run / "files" / "media" / "videos").rglob("*.mp4")
    assert kept.read_bytes() == (tmp_path / "v.mp4").read_bytes()


def test_disabled_leaves_nothing_behind(tmp_path: Path) -> None:
    sink = WandbSink(tmp_path, mode="disabled")
    sink.open()
    sink.samples(1, [ROW])
    sink.write(1, {"loss/total": 1.0})
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_online_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.wandb\.mode=offline") as caught:
        WandbSink(tmp_path, mode="online", init_s=20.0).open()
    assert "\n" not in str(caught.value)
