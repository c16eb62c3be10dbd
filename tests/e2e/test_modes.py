"""The modes of the preference learner as whole programs: offline alone, offline to online, on-policy, soft labels."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from align.tracking.metrics import undocumented
from tests.e2e.programs import finish, metrics, same_weights, start

pytestmark = pytest.mark.e2e

TO_ONLINE = "recipes/smoke/offline_to_online_tiny.yaml"


@pytest.mark.slow
def test_offline_dpo_needs_no_engine_and_continues_bit_for_bit(tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    done = finish("./recipes/smoke/dpo_tiny.yaml", f"run.dir={whole}")
    assert done.returncode == 0, done.stderr
    for steps in (2, 4):
        finish(
            "./recipes/smoke/dpo_tiny.yaml",
            f"run.dir={halved}",
            f"schedule.total_steps={steps}",
            f"schedule.offline_steps={steps}",
        )
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["buffer/offline_fraction"] == 1 for row in rows)
    assert rows[-1]["loss/preference"] < rows[0]["loss/preference"]
    assert metrics(halved) == rows
    assert same_weights(whole, halved)
    report = json.loads((whole / "intruders.json").read_text())
    assert report["matrices"], "a report of every matrix that training has changed"
    assert (whole / "policy" / "adapter" / "adapter_model.safetensors").exists()


def test_one_run_goes_from_offline_to_online_and_the_metrics_show_the_switch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = finish(f"./{TO_ONLINE}", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    rows = {row["step"]: row for row in metrics(folder)}
    assert [rows[step]["buffer/offline_fraction"] for step in (1, 2)] == [1, 1]
    assert "label/pairs" not in rows[2]
    # One offline pair for every online one, in batches of both.
    assert rows[3]["buffer/offline_fraction"] == rows[4]["buffer/offline_fraction"] == 0.5
    assert rows[3]["label/pairs"] > 0
    assert rows[3]["loss/bonus"] != 0
    # The schedule is by loop step.
    assert [rows[step]["alpha"] for step in (1, 2, 3, 4)] == [1e-3, 1e-3, 1e-3, 5e-4]
    assert undocumented(name for row in rows.values() for name in row if name not in ("step", "nonfinite")) == []
    # The best iterate by validation is kept beside the last.
    best = int(rows[4]["eval/best_step"])
    assert best in (0, 2, 4)
    assert (folder / "policy_best" / "model.safetensors").exists()
    assert rows[best]["eval/accuracy"] == max(rows[step]["eval/accuracy"] for step in (0, 2, 4))


@pytest.mark.slow
def test_both_samples_from_the_policy_carry_a_bonus_in_the_on_policy_form(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = finish(
        f"./{TO_ONLINE}",
        f"run.dir={folder}",
        "schedule.offline_steps=0",
        "schedule.total_steps=2",
        "rollout.reference_samples=0",
        "label={type: soft, pairing: random, ties: random}",
        "learner.loss={type: xpo_onpolicy, alpha_schedule: [1.0e-3, 0]}",
        "mixer={batch_pairs: 4, epochs: 2, replay_ratio: 0}",
    )
    assert done.returncode == 0, done.stderr
    rows = {row["step"]: row for row in metrics(folder)}
    assert "xpo/ref_sample_logp" not in rows[1]
    assert rows[1]["loss/bonus"] != 0
    assert (rows[2]["alpha"], rows[2]["loss/bonus"]) == (0, 0)


def test_one_update_on_each_fresh_on_policy_batch_is_refused_and_the_message_says_why() -> None:
    done = finish(
        "python",
        "-m",
        "align",
        "check",
        "recipes/xpo_onpolicy.yaml",
        "mixer={batch_pairs: 320, epochs: 1, replay_ratio: 0}",
    )
    assert done.returncode == 2
    assert "zero mean" in done.stderr
    assert "mixer.epochs" in done.stderr


@pytest.mark.slow
def test_a_learner_that_is_killed_ends_the_run_in_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (
        "./recipes/smoke/dpo_tiny.yaml",
        f"run.dir={folder}",
        "cluster={type: ray}",
        "schedule={total_steps: 500, offline_steps: 500, sync_every: 1, checkpoint_every: 1}",
        "learner.intruders=false",
    )
    process = start(*words)
    until = time.monotonic() + 240
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    [victim] = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "PartServer" in " ".join(p.cmdline())
    ]
    published = [name for name in os.listdir("/dev/shm") if f"-{victim.pid}-" in name and name.startswith("polestar-")]
    assert published
    victim.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "'learner'" in err.strip().splitlines()[-1]
    assert not set(published) & set(os.listdir("/dev/shm"))
    done = len(metrics(folder))
    again = finish(*words[:3], f"schedule={{total_steps: {done + 1}, offline_steps: 500, sync_every: 1}}")
    assert again.returncode == 2  # the schedule is the run's; a shorter one is refused, and says so
    assert "schedule" in again.stderr
