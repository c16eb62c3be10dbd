"""Prompt sources and their order."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.prompts import (
    PromptError,
    PromptStream,
    gym_prompts,
    jsonl_lines,
    jsonl_records,
    question_of,
    record_prompts,
)
from rollouts.types import Message, Prompt

SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
FIELDS: dict[str, Any] = {"prompt_field": "prompt", "reference_field": None, "answer_field": None, "size": None}


def test_heldout_problems_share_no_question_with_training() -> None:
    heldout = gym_prompts("chain_sum", size=200, seed=2, config=SUMS, distinct=True)
    questions = frozenset(map(question_of, heldout))
    train = gym_prompts("chain_sum", size=1000, seed=1, config=SUMS, exclude=questions)
    assert (len(heldout), len(questions), len(train)) == (200, 200, 1000)
    assert not questions & set(map(question_of, train))


def test_a_question_that_comes_again_is_a_prompt_of_its_own() -> None:
    train = gym_prompts("chain_sum", size=1000, seed=1, config=SUMS)
    assert len({p.id for p in train}) == 1000
    assert len(set(map(question_of, train))) < 1000


def test_gym_answers_are_right() -> None:
    for prompt in gym_prompts("chain_sum", size=50, seed=4, config=SUMS):
        expression = question_of(prompt).split(":")[1].strip(" =")
        assert prompt.answer == str(eval(expression))
        assert prompt.reference is not None and prompt.reference.endswith(f"= {prompt.answer}")


def test_gym_mistakes_are_one_line() -> None:
    with pytest.raises(PromptError, match="no task 'chain_sun', did you mean 'chain_sum'"):
        gym_prompts("chain_sun", size=1, seed=0, config={})
    with pytest.raises(PromptError, match="refuses the config"):
        gym_prompts("chain_sum", size=1, seed=0, config={"terms": 3})
    every = gym_prompts("chain_sum", size=200, seed=0, config={**SUMS, "max_terms": 2}, distinct=True)
    with pytest.raises(PromptError, match="outside the held-out set"):
        gym_prompts(
            "chain_sum",
            size=5,
            seed=1,
            config={**SUMS, "max_terms": 2},
            exclude=frozenset(map(question_of, every)),
        )


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "one?", "answer": 1, "ref": "It is 1"},
        {
            "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two?"}],
            "answer": 2,
            "ref": "",
        },
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    fields = {**FIELDS, "answer_field": "answer", "reference_field": "ref"}
    prompts = record_prompts(jsonl_records(path), source="f", **fields)
    assert [p.answer for p in prompts] == ["1", "2"]
    assert prompts[0].messages == (Message("user", "one?"),)
    assert prompts[1].messages[0] == Message("system", "be brief")
    assert prompts[0].reference == "It is 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', ":2: not JSON"),
        ("[1]", ":1: expected a JSON object, got list"),
        ('{"question": "a"}', r"record 1: no field 'prompt' \(its fields: question\)"),
        ('{"prompt": ""}', "expected text or a list of messages"),
        ('{"prompt": [{"role": "user"}]}', "expected text or a list of messages"),
        ("", "holds no prompts"),
    ],
)
def test_jsonl_mistakes_name_the_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        record_prompts(jsonl_records(path), source="f", **FIELDS)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="No such file"):
        list(jsonl_records(tmp_path / "none.jsonl"))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(PromptError, match="not UTF-8"):
        list(jsonl_records(binary))


def test_a_json_lines_file_can_be_read_on_from_any_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"n": 1}\n\n{"n": "é\\n"}\r\n   \n{"n": 3}'.encode())
    lines = list(jsonl_lines(path))
    assert [(line.number, line.record["n"]) for line in lines] == [(1, 1), (3, "é\n"), (5, 3)]
    for i, line in enumerate(lines):
        assert list(jsonl_lines(path, line.number, line.end)) == lines[i + 1 :]


def stream(count: int, seed: int) -> PromptStream:
    return PromptStream([Prompt(str(i), (Message("user", str(i)),)) for i in range(count)], seed)


@given(st.integers(1, 30), st.integers(0, 1000), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_each_prompt_once_an_epoch_and_the_position_is_the_state(count: int, seed: int, takes: list[int]) -> None:
    one, whole = stream(count, seed), stream(count, seed)
    taken = [p.id for take in takes for p in one.take(take)]
    assert taken == [p.id for p in whole.take(sum(takes))]
    for start in range(0, len(taken) - count + 1, count):
        assert len(set(taken[start : start + count])) == count
    other = stream(count, seed)
    other.load_state_dict(one.state_dict())
    assert [p.id for p in other.peek(5)] == [p.id for p in one.take(5)]
