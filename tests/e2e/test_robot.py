"""A robot's whole run through the command line: offline, then online without resets, killed, continued, on Ray."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from align.tracking.metrics import undocumented
from tests.e2e.programs import finish, metrics, start
from tests.rewards.success.tiny_vlm import WORDS, build_tiny_vlm

pytestmark = pytest.mark.e2e

ROBOT = "recipes/smoke/robot.yaml"


def weights(folder: Path) -> bytes:
    return (folder / "policy" / "model.safetensors").read_bytes()


def ran(folder: Path, *overrides: str, timeout_s: float = 300) -> str:
    """What a run in ``folder`` has said, which must have ended well."""
    done = finish(f"./{ROBOT}", f"run.dir={folder}", *overrides, timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("robot") / "plain"
    return folder, ran(folder)


def test_a_run_leaves_everything_in_its_folder(plain: tuple[Path, str]) -> None:
    folder, output = plain
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(9))
    assert undocumented(name for row in rows for name in row if name not in ("step", "nonfinite")) == []
    assert all("collect/episodes" not in row for row in rows[:5]), "the first four steps are offline"
    assert all(row["collect/episodes"] == 4 for row in rows[5:])
    assert rows[6]["buffer/offline_fraction"] == 0.5
    summary = json.loads((folder / "summary.json").read_text())
    assert [phase["step"] for phase in summary["phases"].values()][:3] == [2, 4, 8]
    assert {*summary["phases"]["online"]["success"]} == {"there", "back", "chain"}
    assert summary["attempts"] == 16
    for name in ("curves.png", "policy/config.json", "policy_best/config.json", "films", "prior/card.md", "wandb"):
        assert (folder / name).exists(), name
    assert "| online | 8 |" in output
    assert not list(folder.rglob("*.part"))


def test_a_killed_run_continues_bit_for_bit(plain: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(f"./{ROBOT}", f"run.dir={folder}", "schedule.checkpoint_every=1")
    until = time.monotonic() + 240
    while (
        not (folder / "checkpoints" / "step-000006").exists() and not (folder / "checkpoints" / "step-000007").exists()
    ):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ran(folder, "schedule.checkpoint_every=1")
    assert weights(folder) == weights(plain[0])
    assert metrics(folder)[-1] == metrics(plain[0])[-1]


def test_a_reward_learnt_from_images_ends_attempts_and_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "learned"
    reward = "reward={type: backbone, consecutive: 1, max_false_positive_rate: 0.1}"
    short = ("prior.failures=4", "evaluation.films=0", "tracking.wandb.mode=disabled", "schedule.total_steps=5")
    ran(folder, reward, *short)
    last = metrics(folder)[-1]
    assert {"collect/detected_success", "collect/false_positive_rate"} <= last.keys()
    report = (folder / "reward" / "report" / "success.md").read_text()
    assert "| there |" in report and "FNR" in report and "the run's detector" in report
    assert (folder / "reward" / "heads.safetensors").exists()


@pytest.mark.slow
def test_a_ranker_pays_a_bonus_and_leaves_attempts_out(tmp_path: Path) -> None:
    folder = tmp_path / "ranked"
    ranker = "ranker={bonus: 1.0, least_probability: 0.4, steps: 60}"
    short = ("prior.failures=4", "evaluation.films=0", "tracking.wandb.mode=disabled", "schedule.total_steps=8")
    ran(folder, ranker, *short)
    online = metrics(folder)[5:]
    assert all(0 < row["reward/ranker"] < 1 for row in online)
    assert all(row["label/episodes"] + row["label/left_out"] == 4 for row in online)
    assert undocumented(name for row in online for name in row if name not in ("step", "nonfinite")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("state", "seen"), [("false", (0, None)), ("proprio", (8, [0, 1]))])
def test_a_policy_that_sees_pixels_and_what_it_is_given_beside(
    tmp_path: Path, state: str, seen: tuple[int, list[int] | None]
) -> None:
    folder = tmp_path / "pixels"
    scene = f"environment={{type: point, horizon: 20, image: true, state: {state}, image_size: 32}}"
    short = ("evaluation.films=0", "tracking.wandb.mode=disabled", "mixer.offline_updates=20", "learner.bc_steps=40")
    ran(folder, scene, *short)
    assert metrics(folder)[-1]["collect/episodes"] == 4
    config = json.loads((folder / "policy" / "config.json").read_text())
    assert (config["state_size"], config["state_columns"], config["image_size"]) == (*seen, [32, 32])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What makes a short run whose reward is a tiny vision-language model, which by default has its own actor."""
    model = build_tiny_vlm(tmp_path_factory.mktemp("vlm") / "llava", (*WORDS, "block", "there", "back"))
    question = "is the block {name} ?"
    reward = f"reward={{type: vlm, model: {model}, question: '{question}', lora_steps: 3, consecutive: 1}}"
    quick = ("evaluation={episodes: 1, lives: 0, films: 0}", "rollout.episodes_per_step=2", "mixer.offline_updates=20")
    return reward, *quick, "prior.failures=3", "tracking.wandb.mode=disabled"


@pytest.mark.slow
def test_a_vision_language_model_is_asked(asked: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    said = ran(folder, *asked, "schedule={total_steps: 2, offline_steps: 1}")
    assert "starting 1 collector(s), the reward model and the learner (local)" in said
    assert metrics(folder)[-1]["collect/episodes"] == 2
    assert (folder / "reward" / "report" / "success.md").exists()
    assert (folder / "reward" / "adapter").is_dir()


RAY = ("cluster={type: ray, num_cpus: 4}", "rollout.collectors=2")


@pytest.mark.slow
def test_robots_on_ray_share_a_success_model_in_an_actor_of_its_own(asked: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    short = "schedule={total_steps: 3, offline_steps: 1}"
    ran(folder, *asked, *RAY, short, timeout_s=500)
    last = metrics(folder)[-1]
    assert last["collect/episodes"] == 4
    assert 0 <= last["collect/detected_success"] <= 1
    assert sorted(path.name for path in (folder / "logs").glob("*.log")) == [
        "collector-0.log",
        "collector-1.log",
        "driver.log",
        "learner.log",
        "reward.log",
    ]


@pytest.mark.slow
def test_a_success_model_that_is_killed_ends_the_run_in_one_line(asked: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "orphaned"
    long = "schedule={total_steps: 500, offline_steps: 1, checkpoint_every: 1}"
    process = start(f"./{ROBOT}", f"run.dir={folder}", *asked, *RAY, long)
    until = time.monotonic() + 480
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    parts = [p for p in psutil.Process(process.pid).children(recursive=True) if "PartServer" in " ".join(p.cmdline())]
    [victim] = [part for part in parts if any(Path(file.path).name == "reward.log" for file in part.open_files())]
    victim.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    said = err.strip().splitlines()[-1]
    assert "part 'reward' died before it had answered" in said and str(folder / "logs" / "reward.log") in said


@pytest.mark.slow
def test_two_robots_on_ray_practise_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    ran(folder, *RAY, "evaluation.films=0")
    assert metrics(folder)[-1]["collect/episodes"] == 8
    assert not list(Path("/dev/shm").glob("polestar-robot-tiny-*")), "the learner's weights are taken back"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("environment={type: gym, id: No/Such-v0}", "prior.path"),
        ("rollout.collectors=2", "cluster='{type: ray}'"),
        ("learner={type: rlpd, critics: 2, subset: 3}", "learner.subset"),
        ("prior.path=nowhere", "nowhere"),
        ("reward={type: backbone, hand_margin: 0.1}", "reward.hand_margin"),
        ("ranker={source: image}", "ranker.source"),
    ],
)
def test_bad_recipes_are_one_line_each(override: str, said: str, tmp_path: Path) -> None:
    done = finish("align", "run", ROBOT, f"run.dir={tmp_path / 'bad'}", override)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
