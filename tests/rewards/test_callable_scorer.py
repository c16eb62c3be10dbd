"""Reward functions in TRL's form: what they get, what their answers become, and who is blamed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import think_format_reward

from rewards.callable_scorer import CallableScorer
from rewards.errors import RewardError
from rewards.types import ScoreFailure, Scorer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


def rollout(*texts: str, i: int = 0, system: str | None = None, **metadata: Any) -> Rollout:
    before = (Message("system", system),) if system else ()
    return Rollout(
        Prompt(f"p{i}", (*before, Message("user", f"q{i}")), f"ref{i}", f"ans{i}", metadata),
        (1,),
        tuple(Completion((len(t), 2), (), t, Finish.STOP, Origin.POLICY, 0) for t in texts),
    )


def answering(*values: Any) -> CallableScorer:
    return CallableScorer(lambda prompts, completions, **columns: list(values))


def test_all_completions_go_into_one_call_in_trls_form() -> None:
    calls: list[dict[str, Any]] = []

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        calls.append({"prompts": prompts, "completions": completions, **columns})
        return [float(len(c)) for c in completions]

    scorer = CallableScorer(reward)
    assert isinstance(scorer, Scorer)
    rollouts = [rollout("a", "bbb", i=0, level=3), rollout("cc", i=1, system="be brief")]
    assert scorer.score(rollouts) == [[1.0, 3.0], [2.0]]
    [call] = calls
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q1"}]
    assert call == {
        "prompts": ["q0", "q0", chat],
        "completions": ["a", "bbb", "cc"],
        "completion_ids": [[1, 2], [3, 2], [2, 2]],
        "reference": ["ref0", "ref0", "ref1"],
        "answer": ["ans0", "ans0", "ans1"],
        "level": [3, 3, None],
    }


def test_a_function_gets_the_columns_that_it_names() -> None:
    def right(completions: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert CallableScorer(right).score([rollout("ans0", "no")]) == [[1.0, 0.0]]


def test_trls_own_conversational_rewards_work() -> None:
    scorer = CallableScorer(think_format_reward, form="chat")
    assert scorer.score([rollout("<think>2 and 2</think>4", "4")]) == [[1.0, 0.0]]


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), torch.tensor(0.25)])
def test_numbers_of_all_kinds_are_floats(value: Any) -> None:
    [[score]] = answering(value).score([rollout("a")])
    assert score == 0.25 and type(score) is float


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "gave no score"),
        (math.nan, "gave nan, not a finite number"),
        (math.inf, "gave inf, not a finite number"),
        ("0.5", "gave str '0.5', not a number"),
        ([1.0], "gave list"),
        (10**400, "not a number"),
        (torch.tensor([1.0, 2.0]), "not a number"),
    ],
)
def test_what_is_no_number_is_a_failure_of_its_item_alone(value: Any, reason: str) -> None:
    [[bad, good]] = answering(value, 1.0).score([rollout("a", "b")])
    assert isinstance(bad, ScoreFailure) and reason in bad.reason and "reward function" in bad.reason
    assert good == 1.0


def test_nothing_to_score_calls_nothing() -> None:
    assert answering("never").score([]) == []
    assert answering("never").score([rollout()]) == [[]]


def raises(prompts: list[str], **columns: Any) -> list[float]:
    raise ValueError("x\ny")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, "^reward function raises raised ValueError: x y$"),
        (lambda prompts, **columns: [1.0, 2.0], "gave 2 numbers for 1 items$"),
        (lambda prompts, **columns: 1.0, "gave float, not a list of 1 numbers$"),
        (lambda prompts, solution: [1.0], "wants 'solution'; it can have .*answer"),
    ],
)
def test_a_function_that_does_not_work_is_named_in_one_line(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        CallableScorer(function).score([rollout("a")])
    assert "\n" not in str(caught.value)


MODULE = """
import asyncio
LIMIT = 3
def reward(prompts, completions, **columns):
    return [float(len(c)) for c in completions]
async def later(prompts, **columns):
    return []
def unnamed(prompts, /):
    return []
"""


def test_a_function_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "polestar_user_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert CallableScorer("polestar_user_rewards:reward").score([rollout("aaa")]) == [[3.0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("polestar_bad_rewards.reward", "is not of the form package.module:function"),
        ("polestar bad:reward", "is not of the form package.module:function"),
        ("polestar_no_such:reward", "no module 'polestar_no_such': install it, or put the folder"),
        ("polestar_bad_rewards:rewrad", "module polestar_bad_rewards has no 'rewrad', did you mean 'reward'"),
        ("polestar_bad_rewards:LIMIT", "is of type int, not a function"),
        ("polestar_bad_rewards:later", "is async: give a plain function"),
        ("polestar_bad_rewards:unnamed", "'prompts' is positional only"),
        ("polestar_broken_rewards:reward", "importing polestar_broken_rewards failed: ZeroDivisionError"),
        ("polestar_lacking_rewards:reward", "importing polestar_lacking_rewards failed: No module named 'no_such_lib'"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "polestar_bad_rewards.py").write_text(MODULE)
    (tmp_path / "polestar_broken_rewards.py").write_text("1 / 0")
    (tmp_path / "polestar_lacking_rewards.py").write_text("import no_such_lib")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RewardError, match="^reward function .*" + message):
        CallableScorer(name)
