"""The step benchmark: its sums by hand, and the command on the tiny model."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from align.bench.memory import PeakMemory
from align.bench.step import render, summarise
from tests.e2e.programs import ROOT, environment

STEP = {
    "timing_s/step": 10.0,
    "timing_s/label": 0.5,
    "timing_s/sync": 1.0,
    "perf/generate_s": 3.0,
    "perf/reference_s_total": 1.0,
    "perf/forward_backward_s_total": 4.0,
    "perf/optimizer_s_total": 0.25,
    "perf/train_gflop_total": 2000.0,
    "label/pairs": 16.0,
    "rollout/tokens_per_s": 300.0,
}


def test_phases_add_up_and_rates_are_by_hand() -> None:
    report = summarise([STEP, {**STEP, "perf/train_gflop_total": 1200.0}, STEP], gemm=[800.0, 1000.0])
    phases = report["phases_s"]
    assert sum(phase["median"] for phase in phases.values()) == pytest.approx(10.0)
    assert phases["other"]["median"] == pytest.approx(0.25)
    assert report["forward_backward_gflop_per_s"] == {"median": 500.0, "min": 300.0, "max": 500.0}
    assert report["share_of_gemm"] == 0.5
    text = render({**report, "peak_memory_gib": 5.5, "seed": 0, "commit": "abc", "cpus": 2, "machine": "m"})
    assert "50% of the 1000 GFLOP/s" in text and "5.50 GiB" in text


def test_memory_of_children_is_counted() -> None:
    with PeakMemory(interval_s=0.05) as memory:
        program = "import time; block = bytearray(b'x' * 300_000_000); print('ready', flush=True); time.sleep(60)"
        child = subprocess.Popen([str(environment_python()), "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        before = memory.peak_bytes
        while memory.peak_bytes < 300_000_000:
            assert child.poll() is None
        child.kill()
        child.wait()
    assert memory.peak_bytes >= max(before, 300_000_000)


def environment_python() -> Path:
    return Path(environment()["PATH"].split(os.pathsep)[0]) / "python"


@pytest.mark.e2e
@pytest.mark.slow
def test_the_command_prints_phases_and_writes_json(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "smoke" / "xpo_tiny.yaml"
    done = subprocess.run(
        ["align", "bench", "step", str(recipe), "schedule.checkpoint_every=0", "schedule.evaluate_every=0"],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "bench" / "step.json").read_text())
    assert report["steps"] == 3
    assert report["share_of_gemm"] > 0 and report["peak_memory_gib"] > 0.1
    assert "forward+backward" in done.stdout
