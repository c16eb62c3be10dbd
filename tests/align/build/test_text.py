"""From sections to the parts that judge: every type of reward and label is built, and does what it says."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from align.build import text
from align.build.mixing import mixer
from align.recipe import PreferenceRecipe
from align.recipe.load import load
from rewards.callable_scorer import CallableScorer
from rewards.remote import RemoteScorer
from rewards.verifiers import VerifierScorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

BASE = """\
name: build
model: {path: some/folder}
prompts:
  train: {type: gym, task: chain_sum, size: 8, seed: 1}
  heldout: {type: gym, task: chain_sum, size: 4, seed: 2}
rollout: {engine: {type: transformers}, samples_per_prompt: 2}
reward: {type: callable, function: "tests.align.build.test_text:lengths"}
label: {type: argmax, pairing: random}
learner: {type: preference, loss: {type: dpo}}
schedule: {total_steps: 3}
"""


def lengths(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """A reward in TRL's form: longer is better."""
    return [float(len(completion)) for completion in completions]


def prefers_short(prompt: str, first: str, second: str) -> float:
    """A judge: shorter is better."""
    return 0.9 if len(first) < len(second) else 0.1


def recipe(folder: Path, *overrides: str) -> PreferenceRecipe:
    file = folder / "x.yaml"
    file.write_text(BASE)
    loaded = load(file, overrides)
    assert isinstance(loaded, PreferenceRecipe)
    return loaded


def rollout() -> Rollout:
    def completion(answer: str, token: int) -> Completion:
        return Completion((token, 2), (-1.0, -1.0), answer, Finish.STOP, Origin.POLICY, 1)

    return Rollout(
        Prompt("p", (Message("user", "1 + 1"),), answer="2"), (1,), (completion("2", 5), completion("long answer", 6))
    )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{type: verifier}", VerifierScorer),
        ("{type: callable, function: 'tests.align.build.test_text:lengths'}", CallableScorer),
        ("{type: remote, url: 'http://127.0.0.1:9/score'}", RemoteScorer),
    ],
)
def test_every_reward_is_built(tmp_path: Path, section: str, expected: type) -> None:
    reward = recipe(tmp_path, f"reward={section}").reward
    assert reward is not None
    with ExitStack() as stack:
        assert isinstance(text.scorer(reward, stack), expected)


@pytest.mark.parametrize(
    ("label", "chosen", "target"),
    [
        ("{type: argmax, pairing: random}", "long answer", 1.0),
        # Scores 11 and 1, temperature 10: sigmoid(1).
        ("{type: soft, temperature: 10, pairing: random}", "long answer", 0.7310586),
        (
            "{type: judge, judge: {type: callable, function: 'tests.align.build.test_text:prefers_short'}, "
            "pairing: random, label: soft}",
            "2",
            0.9,
        ),
    ],
)
def test_every_label_is_built_and_shows_its_samples(tmp_path: Path, label: str, chosen: str, target: float) -> None:
    loaded = recipe(tmp_path, f"label={label}")
    assert loaded.label is not None
    assert loaded.reward is not None
    shown: list[Any] = []
    with ExitStack() as stack:
        show = text.Show(shown.extend, every=1, rows=1)
        labeller = text.labeller(loaded.label, text.scorer(loaded.reward, stack), 0, show, stack)
        [pair], metrics = labeller.label([rollout()], 1)
    assert pair.chosen.text == chosen
    assert pair.target == pytest.approx(target)
    assert metrics["label/pairs"] == 1
    assert {row.verdict for row in shown} == {"chosen", "rejected"}


def test_prior_data_leaves_held_out_questions_out(tmp_path: Path, tiny_model: Path) -> None:
    from rollouts.chat import ChatRenderer
    from rollouts.models import load_tokenizer

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        '{"prompt": "1 + 1", "chosen": "2", "rejected": "3"}\n{"prompt": "2 + 2", "chosen": "4", "rejected": "5"}\n'
    )
    loaded = recipe(
        tmp_path,
        f"offline={{source: {{type: jsonl, path: '{pairs}'}}, updates_per_step: 2}}",
        "schedule.offline_steps=3",
        "mixer.batch_pairs=2",
    )
    heldout = [Prompt("h", (Message("user", "1 + 1"),))]
    said: list[str] = []
    mixed = mixer(loaded, ChatRenderer(load_tokenizer(tiny_model), None), heldout, said.append)
    assert said == ["prior data: 1 pairs, 1 left out (heldout)"]
    batches = mixed.batches(1)
    assert [len(batch.pairs) for batch in batches] == [2, 2]
    assert {pair.prompt.messages[-1].content for batch in batches for pair in batch.pairs} == {"2 + 2"}
    assert all(all(batch.is_offline) for batch in batches)
    assert [batch.step for batch in batches] == [1, 1]
