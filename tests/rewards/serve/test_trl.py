"""TRL's reward function: numbers, or an error; never None."""

from collections.abc import Sequence
from typing import Any

import pytest

from rewards.errors import RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.trl import TRLReward
from rewards.types import ScoreFailure
from rollouts.types import Message


class Scorer:
    def __init__(self) -> None:
        self.items: list[PolarItem] = []

    def score_items(self, items: Sequence[PolarItem]) -> list[ItemScore]:
        self.items += items
        return [
            ItemScore(ScoreFailure("too long") if item.output == "long" else float(n), frozenset(), 0, 1)
            for n, item in enumerate(items)
        ]


def columns(**extra: Any) -> dict[str, Any]:
    """What TRL passes beside prompts and completions."""
    return {"completion_ids": [[1], [2]], "trainer_state": object(), "log_extra": print, "log_metric": print, **extra}


def test_texts() -> None:
    scorer = Scorer()
    reward = TRLReward(scorer.score_items)
    assert reward(prompts=["p", "q"], completions=["a", "b"], **columns(reference=["r", "s"])) == [0.0, 1.0]
    assert scorer.items == [PolarItem("p", "r", "a"), PolarItem("q", "s", "b")]
    assert reward.__name__ == "polar"


def test_messages_and_another_column() -> None:
    scorer = Scorer()
    prompt = [{"role": "user", "content": "p"}]
    answer = [{"role": "assistant", "content": "a"}]
    reward = TRLReward(scorer.score_items, reference="answer", name="likeness")
    assert reward(prompts=[prompt], completions=[answer], **columns(answer=[answer], reference=[None])) == [0.0]
    assert scorer.items == [
        PolarItem((Message("user", "p"),), (Message("assistant", "a"),), (Message("assistant", "a"),))
    ]
    assert reward.__name__ == "likeness"


@pytest.mark.parametrize(
    ("completion", "extra", "said"),
    [
        ("long", {"reference": ["r", "r"]}, "1 of 2 items have no score; item 1: too long"),
        ("b", {}, "no column 'reference'"),
        ("b", {"reference": ["r", None]}, "item 1: reference"),
        (None, {"reference": ["r", "r"]}, "item 1: completion"),
    ],
)
def test_what_has_no_score_is_an_error(completion: Any, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(RewardError, match=said):
        TRLReward(Scorer().score_items)(prompts=["p", "q"], completions=["a", completion], **columns(**extra))


def test_a_short_answer_is_an_error() -> None:
    with pytest.raises(RewardError, match="0 scores for 1 items"):
        TRLReward(lambda items: [])(prompts=["p"], completions=["a"], reference=["r"])


@pytest.mark.slow
def test_trl_names_and_calls_it() -> None:
    """As the GRPO trainer does: it takes the name, and puts the numbers into a tensor."""
    torch = pytest.importorskip("torch")
    from trl.trainer.utils import get_callable_name

    reward = TRLReward(Scorer().score_items)
    assert get_callable_name(reward) == "polar"
    given = reward(prompts=["p", "q"], completions=["a", "b"], **columns(reference=["r", "s"]))
    assert torch.tensor(given, dtype=torch.float32).tolist() == [0.0, 1.0]
