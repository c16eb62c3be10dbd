"""Triples that differ in one number: which number, which way round, and who takes part."""

from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.edited import LARGEST_ERROR, edited_triples
from rewards.verifiers import extract_answer
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout


def rollout(*texts: str, answer: str | None = "7", reference: str | None = "3 + 4 = 7") -> Rollout:
    prompt = Prompt("p", (Message("user", "3 + 4 ="),), reference, answer)
    return Rollout(prompt, (), tuple(Completion((), (), t, Finish.STOP, Origin.DATASET, 0) for t in texts))


def test_a_right_sample_is_chosen_and_its_last_number_changed_in_the_rejected_one() -> None:
    [triple] = edited_triples([rollout("3 + 4 is 7.")], per_prompt=1, seed=0, policies=["a"])
    assert (triple.reference, triple.chosen) == ("3 + 4 = 7", "3 + 4 is 7.")
    assert triple.rejected.startswith("3 + 4 is ")
    wrong = int(triple.rejected.removeprefix("3 + 4 is ").removesuffix("."))
    assert 1 <= abs(wrong - 7) <= LARGEST_ERROR
    assert triple.metadata == {"id": "p", "edited": "rejected", "policy": "a"}


def test_a_wrong_sample_is_rejected_and_put_right_in_the_chosen_one() -> None:
    [triple] = edited_triples([rollout("So 3 + 4 = -12, I think")], per_prompt=3, seed=0)
    assert (triple.chosen, triple.rejected) == ("So 3 + 4 = 7, I think", "So 3 + 4 = -12, I think")
    [triple] = edited_triples([rollout("it is 9-2")], per_prompt=3, seed=0)
    assert triple.chosen == "it is 9-7"  # a subtraction: the minus stays


def test_who_takes_no_part() -> None:
    nobody = [
        rollout("no number", " ", "3 + 4 = 7", "about 2.5"),
        rollout("7", answer="seven"),
        rollout("7", answer=None),
        rollout("7", reference=None),
    ]
    assert edited_triples(nobody, per_prompt=3, seed=0) == []


def test_a_text_counts_once_and_the_draw_is_the_seeds() -> None:
    rollouts = [rollout(*[f"answer {i}" for i in range(20)]), rollout("answer 3", "answer 4")]
    first = edited_triples(rollouts, per_prompt=5, seed=1)
    assert len({(t.metadata["edited"] == "chosen" and t.rejected) or t.chosen for t in first}) == 5
    assert edited_triples(rollouts, per_prompt=5, seed=1) == first
    assert edited_triples(rollouts, per_prompt=5, seed=2) != first
    assert len(edited_triples(rollouts, per_prompt=100, seed=1)) == 20


@given(st.text(alphabet="0123456789-+= abc\n", max_size=30), st.integers(-30, 30))
def test_chosen_answers_right_and_rejected_wrong_in_the_verifiers_eyes(text: str, answer: int) -> None:
    for triple in edited_triples([rollout(text, answer=str(answer))], per_prompt=1, seed=0):
        assert int(extract_answer(str(triple.chosen), "1")) == answer
        assert int(extract_answer(str(triple.rejected), "1")) != answer
