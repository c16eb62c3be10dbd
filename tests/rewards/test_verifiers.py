"""Answers found in text, and scores that are numbers or failures, never a failure dressed as a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.types import ScoreFailure
from rewards.verifiers import VerifierScorer, extract_answer
from rollouts.prompts import gym_prompts
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 7.", "7"),
        ("3 + 4 = 7", "7"),
        ("7, because 3 + 4 makes it", "4"),
        ("It is -5", "-5"),
        ("3 - 8 = -5.", "-5"),
        ("8 -3", "3"),
        ("=-2", "-2"),
        ("a total of 1,234 apples", "1234"),
        ("2.50", "2.50"),
        ("\u22127", "-7"),
        ("none at all", ""),
        ("", ""),
    ],
)
def test_last_number(text: str, found: str) -> None:
    assert extract_answer(text, "5") == found


def test_text_where_the_answer_is_no_number() -> None:
    assert extract_answer(" True 5\n", "True") == "True 5"
    assert extract_answer(" 5 \n", "5", "text") == "5"


@given(st.integers(-10_000, 10_000), st.text(alphabet="abc .,=\n", max_size=20))
def test_a_number_stated_last_is_found(number: int, before: str) -> None:
    assert extract_answer(f"{before} is {number}", "1") == str(number)


def rollout(prompt: Prompt, *texts: str) -> Rollout:
    return Rollout(prompt, (1,), tuple(Completion((5, 2), (), t, Finish.STOP, Origin.POLICY, 0) for t in texts))


def test_gym_tasks_are_judged_by_their_own_verifier() -> None:
    [prompt] = gym_prompts("chain_sum", size=1, seed=3, config={"max_terms": 2, "max_digits": 1, "min_digits": 1})
    right, wrong = f"So it is {prompt.answer}.", "I think 9999"
    assert VerifierScorer(threshold=1.0).score([rollout(prompt, right, wrong)]) == [[1.0, 0.0]]


def test_partial_credit_is_cut_at_the_threshold() -> None:
    [prompt] = gym_prompts("chain_sum", size=1, seed=3, config={"max_terms": 2, "max_digits": 1, "min_digits": 1})
    raw = VerifierScorer(threshold=0.0).score([rollout(prompt, f"{prompt.answer} 1 1")])[0][0]
    assert isinstance(raw, float) and raw < 1.0
    assert VerifierScorer(threshold=1.0).score([rollout(prompt, f"{prompt.answer} 1 1")]) == [[0.0]]


def test_other_prompts_are_judged_by_equality() -> None:
    prompt = Prompt("p", (Message("user", "capital of France?"),), answer="Paris")
    assert VerifierScorer().score([rollout(prompt, " Paris\n", "paris", "Lyon")]) == [[1.0, 0.0, 0.0]]


def test_a_prompt_without_an_answer_is_a_failure() -> None:
    [[score]] = VerifierScorer().score([rollout(Prompt("p", (Message("user", "x"),)), "y")])
    assert score == ScoreFailure("prompt 'p' has no answer to check against")


def test_a_verifier_that_raises_is_a_failure_not_a_zero() -> None:
    # reasoning-gym's prime factorisation raises ValueError on text without factors.
    [prompt] = gym_prompts("prime_factorization", size=1, seed=0, config={})
    [[score]] = VerifierScorer(extract="text").score([rollout(prompt, "no idea * at all")])
    assert isinstance(score, ScoreFailure) and "ValueError" in score.reason
