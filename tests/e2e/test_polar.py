"""Policy discriminators as whole programs: corpus, training, evaluation, shipping, scaling; one as a reward."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from align.tracking.metrics import undocumented
from tests.e2e.programs import finish, metrics, start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CORPUS, TRAINING = "recipes/smoke/polar_corpus_tiny.yaml", "recipes/smoke/polar_tiny.yaml"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("polar") / "corpus"
    done = finish("align", "polar", "corpus", CORPUS, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "the data card is" in done.stdout
    assert "rules that must not win" in done.stdout
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path) -> Path:
    folder = corpus.with_name("trained")
    done = finish(f"./{TRAINING}", f"run.dir={folder}", f"data.path={corpus}")
    assert done.returncode == 0, done.stderr
    assert "| after |" in done.stdout
    return folder


def test_a_corpus_has_a_card_and_ranked_triples_and_is_only_read_again(corpus: Path) -> None:
    assert {"card.md", "card.json", "data", "raw", "ranked", "lengths.png"} <= {path.name for path in corpus.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in (corpus / "raw").iterdir()}
    again = finish("align", "run", CORPUS, f"run.dir={corpus}")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (corpus / "raw").iterdir()} == before
    other = finish("align", "run", CORPUS, f"run.dir={corpus}", "pairs.max_new_tokens=63")
    assert other.returncode == 2
    assert "max_new_tokens was 64, now 63" in other.stderr


def test_a_training_says_what_came_of_it_and_is_finished(trained: Path, corpus: Path) -> None:
    rows = metrics(trained)
    assert undocumented(name for row in rows for name in row if name not in ("step", "nonfinite")) == []
    assert rows[0]["eval/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"model", "adapter", "curves.png", "summary.md"} <= {path.name for path in trained.iterdir()}
    again = finish(f"./{TRAINING}", f"run.dir={trained}", f"data.path={corpus}")
    assert "this run is finished" in again.stdout


def test_a_killed_training_ends_with_the_same_model(trained: Path, corpus: Path) -> None:
    folder = corpus.with_name("killed")
    words = (f"./{TRAINING}", f"run.dir={folder}", f"data.path={corpus}")
    process = start(*words)
    until = time.monotonic() + 120
    while time.monotonic() < until and not (folder / "checkpoints" / "state-2.json").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = finish(*words)
    assert done.returncode == 0, done.stderr
    one, other = (path / "model" / "model.safetensors" for path in (folder, trained))
    assert one.read_bytes() == other.read_bytes()


def test_it_is_evaluated_beside_everything_simpler(trained: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    for data in (corpus, corpus / "ranked" / "train.jsonl"):
        done = finish(
            "align", "polar", "eval", f"{trained}/model", "--data", str(data), "--backbone", f"{trained}/start",
            "--out", str(out),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for row in ("no reference", "shuffled references", "MiniLM", "longer wins", "Paired differences"):
            assert row in done.stdout
        assert json.loads(out.read_text())["triples"] > 0


def test_it_is_the_reward_of_a_run_and_the_verifier_only_watches(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xpo"
    done = finish(
        "./recipes/smoke/xpo_tiny.yaml",
        f"run.dir={folder}",
        f"reward={{type: polar, model: {trained}/model, dtype: float32, max_context: 400}}",
    )
    assert done.returncode == 0, done.stderr
    rows = metrics(folder)
    assert undocumented(name for row in rows for name in row if name not in ("step", "nonfinite")) == []
    steps = [row for row in rows if "reward/raw_mean" in row]
    assert steps
    assert all(row["reward/failed"] == 0 and row["reward/cached_token_fraction"] > 0.2 for row in steps)
    assert all("reward/verified_mean" in row for row in steps)
    evaluated = [row for row in rows if "eval/accuracy" in row]
    assert evaluated
    assert all("eval/reward_mean" in row for row in evaluated)
    assert (folder / "reward_vs_accuracy.png").stat().st_size > 10_000


def test_an_adapter_is_shipped_and_told_why_it_cannot_be(trained: Path, tmp_path: Path) -> None:
    done = finish("align", "polar", "ship", str(trained), str(tmp_path / "mine"), "--base", "tiny:0")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"adapter_model.safetensors", "base.json"}
    refused = finish("align", "polar", "ship", str(trained), str(tmp_path / "mine"), "--base", "tiny:0")
    assert refused.returncode == 2
    assert "exists" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_sizes_become_a_law_with_a_picture(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scaling"
    done = finish("./recipes/smoke/polar_scaling_tiny.yaml", f"run.dir={folder}", f"data.path={corpus}")
    assert done.returncode == 0, done.stderr
    scaling = json.loads((folder / "scaling.json").read_text())
    assert [size["layers"] for size in scaling["sizes"]] == [1, 2]
    assert scaling["by_parameters"]["exponent"] is not None
    assert (folder / "scaling.png").stat().st_size > 10_000
    assert undocumented(name for row in metrics(folder) for name in row if name not in ("step", "nonfinite")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("align", "polar", "eval", "polar:none", "--data", "a.jsonl"), "a.jsonl: cannot be read"),
        (("align", "polar", "convert", "tiny:0", "{tmp}/converted"), "InternLM2ForRewardModel"),
        (("align", "polar", "golden", "{tmp}"), "config.json"),
        (("align", "polar", "corpus", "recipes/xpo.yaml"), "is a recipe of kind 'preference'"),
        (("align", "run", TRAINING, "run.dir={tmp}/run", "data.path={tmp}"), "{tmp}"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = finish(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 2
    assert message.format(tmp=tmp_path) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
