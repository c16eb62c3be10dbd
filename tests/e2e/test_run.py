"""Whole runs of the smoke recipe through the command line: started, overridden, killed, continued, interrupted."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from align.tracking.metrics import undocumented
from tests.e2e.programs import SMOKE, finish, metrics, same_weights, start

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smoke recipe run as a program; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    done = finish(f"./{SMOKE}", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_run_leaves_everything_in_its_folder(plain: tuple[Path, str]) -> None:
    folder, output = plain
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[4]["sync/version"] == 4 if len(rows[4]) else False
    assert sum(row.get("label/pairs", 0) for row in rows) > 20
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4
    for name in ("recipe.yaml", "curves.png", "samples.jsonl", "environment.jsonl", "policy/config.json", "wandb"):
        assert (folder / name).exists(), name
    assert "Held-out accuracy" in output
    assert not list(folder.rglob("*.part"))


def test_the_terminal_shows_the_run_and_not_its_libraries(plain: tuple[Path, str]) -> None:
    _, output = plain
    for noise in ("INFO", "WARNING", "Traceback", "vllm.", "it/s"):
        assert noise not in output
    assert "step 4/4" in output


def test_every_metric_is_documented(plain: tuple[Path, str]) -> None:
    names = {name for row in metrics(plain[0]) for name in row if name not in ("step", "nonfinite")}
    assert undocumented(names) == []
    assert "mismatch/logp_gap" in names and "xpo/ref_sample_logp" in names


def test_the_engine_and_the_learner_agree(plain: tuple[Path, str]) -> None:
    for row in metrics(plain[0])[1:]:
        assert row["sync/probe_gap_mean"] < 1e-3  # float32 on both sides
        assert row["mismatch/logp_gap_max"] < 1e-3


def test_the_phases_add_up(plain: tuple[Path, str]) -> None:
    for line in (plain[0] / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        parts = sum(v for k, v in row.items() if k.startswith("timing_s/") and k != "timing_s/step")
        assert parts == pytest.approx(row["timing_s/step"], abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_and_an_override_shortens_it(plain: tuple[Path, str], tmp_path: Path) -> None:
    done = finish("align", "run", SMOKE, f"run.dir={tmp_path}/short", "schedule.total_steps=2")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "short") == metrics(plain[0])[:3]
    # A longer schedule continues where the shorter one ended.
    done = finish("align", "run", SMOKE, f"run.dir={tmp_path}/short")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "short") == metrics(plain[0])
    assert same_weights(tmp_path / "short", plain[0])
    again = finish("align", "run", SMOKE, f"run.dir={tmp_path}/short")
    assert (again.returncode, "this run is finished" in again.stdout) == (0, True)


@pytest.mark.parametrize("after", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_continues_bit_for_bit(plain: tuple[Path, str], tmp_path: Path, after: int) -> None:
    folder = tmp_path / "killed"
    process = start("align", "run", SMOKE, f"run.dir={folder}")
    # Line 1 is the evaluation before the first step: line `after + 1` says that step `after` has ended.
    wait_for(lambda: steps_logged(folder) > after or process.poll() is not None, f"step {after}")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "summary.json").exists()
    done = finish("align", "run", SMOKE, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert metrics(folder) == metrics(plain[0])
    assert same_weights(folder, plain[0])


def test_another_recipe_does_not_continue_a_run(plain: tuple[Path, str]) -> None:
    done = finish("align", "run", SMOKE, f"run.dir={plain[0]}", "learner.loss.beta=0.2")
    assert done.returncode == 2
    assert "learner.loss.beta was 0.1 and is 0.2 now" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "ray"])
def test_ctrl_c_ends_the_run_and_leaves_a_folder_that_continues(
    plain: tuple[Path, str], tmp_path: Path, cluster: str
) -> None:
    folder = tmp_path / "interrupted"
    words = ("align", "run", SMOKE, f"run.dir={folder}", f"cluster={{type: {cluster}}}")
    process = start(*words)
    wait_for(lambda: steps_logged(folder) > 2 or process.poll() is not None, "step 2")
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "align: interrupted"
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    done = finish(*words)
    assert done.returncode == 0, done.stderr
    assert same_weights(folder, plain[0])


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_run(plain: tuple[Path, str], tmp_path: Path) -> None:
    done = finish("align", "run", SMOKE, f"run.dir={tmp_path}/ray", "cluster={type: ray}")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "ray") == metrics(plain[0])
    assert same_weights(tmp_path / "ray", plain[0])
    assert (tmp_path / "ray" / "logs" / "engine-0.log").exists()


@pytest.mark.slow
def test_an_engine_that_is_killed_comes_back_and_the_run_is_the_same(plain: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "wounded"
    process = start("align", "run", SMOKE, f"run.dir={folder}", "cluster={type: ray}")

    def engine() -> list[Any]:
        # Ray names its workers after the actor's class and method; the engine is the one that loaded vLLM.
        family = psutil.Process(process.pid).children(recursive=True)
        return [p for p in family if any("vllm" in m.path for m in p.memory_maps())]

    wait_for(lambda: steps_logged(folder) > 1 or process.poll() is not None, "step 1")
    [victim] = engine()
    victim.kill()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert metrics(folder) == metrics(plain[0])
    assert same_weights(folder, plain[0])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["rollout/engine_recoveries"] >= 1
