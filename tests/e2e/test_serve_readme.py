"""The page about scoring over HTTP: its examples are run as they stand, against a real server, and must agree."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from align.build.text import scorer
from align.recipe.judgement import Reward
from rewards.polar.model import build_polar, load_encoder, load_polar, polar_settings, save_polar
from rewards.polar.types import PolarItem
from rewards.serve.canary import DEFAULT_CANARY
from rewards.serve.client import RewardClient
from rollouts.models import load_tokenizer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "rewards/serve/README.md").read_text(encoding="utf-8")
WRITTEN_URL = "http://127.0.0.1:8000"
NAME = "polar:smollm2-135m"
BLOCKS = [(m[1], m[2]) for m in re.finditer(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
QUESTION, REFERENCE = "What is the capital of France?", "The capital of France is Paris."
OUTPUTS = ("It is Paris.", "It is Rome.")

SERVER = """
import sys
from rewards.serve.main import ServeSettings, serve
settings = ServeSettings(sys.argv[1], name=sys.argv[2], backend="transformers", dtype="float32", port=0)
sys.exit(serve(settings, lambda line: print(line, flush=True)))
"""


def blocks(language: str) -> list[Any]:
    """The fenced examples of one language, named by the heading that they stand under."""
    found = []
    for kind, text in BLOCKS:
        if kind == language:
            heading = PAGE[: PAGE.index(text)].rpartition("\n## ")[2].partition("\n")[0]
            found.append(pytest.param(text, id=f"{heading} {len(found)}"))
    return found


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny discriminator with a random head, turned so that the canary pair is in the right order."""
    folder = tmp_path_factory.mktemp("readme") / "polar"
    build_polar(tiny_model, folder, max_length=512, max_response_length=120)
    network, encoder = load_polar(folder, torch.float32), load_encoder(folder)
    head = network.score.weight
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
        right, wrong = (
            network(torch.tensor([encoder.encode(i.prompt, i.reference, i.output)])).logits.item()
            for i in DEFAULT_CANARY.items()
        )
        head.mul_(1.0 if right > wrong else -1.0)
    save_polar(network, load_tokenizer(folder), polar_settings(folder), folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(model), NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            announced = process.stdout.readline()
            address = re.search(r"http://\S+", announced)
            assert address is not None, announced
            with RewardClient(address[0]) as client:
                client.wait_until_ready(timeout_s=300)
            yield address[0]
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def rewards(url: str) -> list[float]:
    """What every example must say, asked for once."""
    with RewardClient(url) as client:
        scores = [answer.score for answer in client.score_items([PolarItem(QUESTION, REFERENCE, o) for o in OUTPUTS])]
    numbers = [score for score in scores if isinstance(score, float)]
    assert len(numbers) == 2 and numbers[0] != numbers[1]
    return numbers


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("POLESTAR_REWARD_URL", "an example sets it; afterwards it is put back")
    monkeypatch.chdir(tmp_path)


def test_the_page_has_examples_of_every_kind() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") >= 8 and {"bash", "yaml", "console", "text"} <= set(kinds)
    # Every fence is one of a block that the tests know.
    assert PAGE.count("```") == 2 * len(BLOCKS)
    for text in (text for kind, text in BLOCKS if kind in ("python", "bash", "yaml")):
        assert WRITTEN_URL in text


@pytest.mark.parametrize("example", blocks("python"))
def test_a_python_example_prints_the_rewards(example: str, url: str, rewards: list[float]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.replace(WRITTEN_URL, url), "README.md", "exec"), {"__name__": "__main__"})
    assert [float(number) for number in printed.getvalue().split()] == pytest.approx(rewards, abs=1e-4)


@pytest.mark.parametrize("example", blocks("bash"))
def test_a_shell_example_answers_in_the_documented_form(example: str, url: str, rewards: list[float]) -> None:
    done = subprocess.run(
        ["bash", "-ec", example.replace(WRITTEN_URL, url)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [entry["reward"] for entry in answer["data"]] == pytest.approx(rewards, abs=1e-4)
    [documented] = [json.loads(text) for kind, text in BLOCKS if kind == "text" and text.startswith("{")]
    assert _shape(answer) == _shape(documented)
    assert answer["model"] == documented["model"]


@pytest.mark.parametrize("example", blocks("yaml"))
def test_a_recipe_example_scores_completions(example: str, url: str, rewards: list[float]) -> None:
    section = YAML(typ="safe").load(example.replace(WRITTEN_URL, url))
    completions = tuple(Completion((1,), (), text, Finish.STOP, Origin.POLICY, 0) for text in OUTPUTS)
    with ExitStack() as stack:
        remote = scorer(TypeAdapter(Reward).validate_python(section["reward"]), stack)
        rollout = Rollout(Prompt("p", (Message("user", QUESTION),), REFERENCE), (1,), completions)
        assert remote.score([rollout])[0] == pytest.approx(rewards, abs=1e-4)


def test_the_server_says_what_the_page_says_it_says(url: str) -> None:
    [session] = [text for kind, text in BLOCKS if kind == "console"]
    command, *said = session.replace(WRITTEN_URL, url).splitlines()
    assert command == f"$ align serve --model {NAME}"
    assert said == [f"serving {NAME} on {url} (manual: /docs)", f"{NAME} is ready"]


def _shape(value: Any) -> Any:
    """Keys and kinds, without what they hold."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shape(each) for each in value]
    return type(value)
