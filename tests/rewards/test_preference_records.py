"""TRL's preference formats, record by record."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt, maybe_extract_prompt

from rewards.preference_records import Preference, common_beginning, read_preference
from rollouts.prompts import PromptError
from rollouts.types import Message

SKY = {"role": "user", "content": "What colour is the sky?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def says(content: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": content}


def messages(*raw: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in raw)


@pytest.mark.parametrize(
    ("record", "prompt", "chosen", "rejected", "from_text"),
    [
        pytest.param(
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            messages(says("The sky is", "user")),
            " blue.",
            " green.",
            True,
            id="standard",
        ),
        pytest.param(
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            messages(says("The sky is", "user")),
            " blue.",
            " black.",
            True,
            id="standard, implicit prompt",
        ),
        pytest.param(
            {"prompt": [SYSTEM, SKY], "chosen": [says("Blue.")], "rejected": [says("Green.")]},
            messages(SYSTEM, SKY),
            "Blue.",
            "Green.",
            False,
            id="conversational",
        ),
        pytest.param(
            {
                "chosen": [SKY, says("Blue."), says("Always?", "user"), says("No.")],
                "rejected": [SKY, says("Blue."), says("Always?", "user"), says("Yes.")],
            },
            messages(SKY, says("Blue."), says("Always?", "user")),
            "No.",
            "Yes.",
            False,
            id="conversational, implicit prompt",
        ),
        pytest.param(
            {"prompt": None, "chosen": [SKY, says("Blue.")], "rejected": [SKY, says("Green.")]},
            messages(SKY),
            "Blue.",
            "Green.",
            False,
            id="a null is a missing field",
        ),
        pytest.param(
            {"prompt": SKY["content"], "chosen": [SKY, says("Blue.")], "rejected": [SKY, says("Green.")]},
            messages(SKY),
            "Blue.",
            "Green.",
            False,
            id="the prompt repeated as text",
        ),
        pytest.param(
            {"prompt": SKY["content"], "chosen": [says("Blue.")], "rejected": [says("Green.")]},
            messages(SKY),
            "Blue.",
            "Green.",
            False,
            id="text prompt, one message a side",
        ),
        pytest.param(
            {"prompt": [SKY], "chosen": "Blue.", "rejected": "Green."},
            messages(SKY),
            "Blue.",
            "Green.",
            False,
            id="messages as prompt, answers as text",
        ),
        pytest.param(
            {"chosen": [SKY, says("Blue.")], "rejected": [SKY, says("Blue.")]},
            messages(SKY),
            "Blue.",
            "Blue.",
            False,
            id="the last message is an answer, even where both are the same",
        ),
    ],
)
def test_formats(
    record: dict[str, Any], prompt: tuple[Message, ...], chosen: str, rejected: str, from_text: bool
) -> None:
    got = read_preference(record, "f:1")
    assert math.isnan(got.margin)
    assert got == Preference(prompt, chosen, rejected, got.margin, from_text)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [SKY], "chosen": [says("Blue.")], "rejected": [says("Green.")]},
        {"chosen": [SYSTEM, SKY, says("Blue.")], "rejected": [SYSTEM, SKY, says("Green.")]},
        {"prompt": SKY["content"], "chosen": [SKY, says("Blue.")], "rejected": [SKY, says("Green.")]},
    ],
)
def test_conversations_are_taken_apart_as_trl_does(record: dict[str, Any]) -> None:
    theirs = maybe_extract_prompt(record)
    ours = read_preference(record, "f:1")
    assert ours.messages == messages(*theirs["prompt"])
    assert [[says(ours.chosen)], [says(ours.rejected)]] == [theirs["chosen"], theirs["rejected"]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        # TRL's own example: it says "It is bl" where ours goes back to the word's start and the blank before it.
        ("It is blue", "It is black", "It is"),
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Human: hi\n\nAssistant: Yes", "Human: hi\n\nAssistant: No", "Human: hi\n\nAssistant:"),
        ("Question\nyes", "Question\nno", "Question\n"),  # a line break stays with the prompt
        ("2 + 2 =4", "2 + 2 =5", "2 + 2 ="),  # a sign is no part of a number
        ("x=12", "x=13", "x="),
        ("It is blue", "It is bluer", "It is"),  # neither answer is empty
        ("It is blue", "It is blue and wide", "It is"),
        ("A  b", "A c", "A"),  # one blank goes with the answer: "  b" and " c"
        ("天空是蓝色", "天空是绿色", "天空是"),
        ("der Ba\u0308r", "der Baum", "der"),  # an accent belongs to its letter
        ("blue", "black", ""),
        ("", "black", ""),
    ],
)
def test_text_is_cut_at_a_word(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: common_beginning(chosen, rejected)] == prompt
    assert rejected[: common_beginning(rejected, chosen)] == prompt


def test_trl_cuts_at_a_character() -> None:
    """The deliberate difference to TRL, pinned so that a change on their side is seen."""
    assert extract_prompt({"chosen": "It is blue", "rejected": "It is black"})["prompt"] == "It is bl"


TEXTS = st.text(st.sampled_from("ab1 \n.蓝\u0308"), max_size=12)


@given(TEXTS, TEXTS, TEXTS)
@example("", "a", "a")
def test_a_cut_leaves_two_answers_that_begin_with_a_word(prompt: str, one: str, other: str) -> None:
    chosen, rejected = prompt + one, prompt + other
    cut = common_beginning(chosen, rejected)
    assert chosen[:cut] == rejected[:cut]
    assert cut == 0 or (chosen[cut:] and rejected[cut:])
    for text in (chosen, rejected):
        if cut:
            pair = text[cut - 1 : cut + 1]
            assert not (pair.isascii() and pair.isalnum()), (text, cut)
            assert pair[1] != "\u0308"
            assert pair[0] != " " or pair[1] == " "


@pytest.mark.parametrize(
    ("scores", "margin"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"score_chosen": 1.0, "score_rejected": 2.0}, -1.0),
        ({"margin": 3}, 3.0),
        ({"margin": 0.5, "score_chosen": 8.0, "score_rejected": 6.0}, 0.5),
    ],
)
def test_margins(scores: dict[str, Any], margin: float) -> None:
    assert read_preference({"prompt": "q", "chosen": "a", "rejected": "b", **scores}, "f:1").margin == margin


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, r"no field 'rejected' \(its fields: prompt, chosen\)"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, r"no field 'chosen'"),
        ({}, r"no field 'chosen' \(its fields: none\)"),
        ({"prompt": "q", "completion": "a", "label": True}, "unpaired data .KTO's form.; preference pairs need"),
        ({"prompt": "q", "completion": "a"}, "prompt-completion data; preference pairs need"),
        ({"messages": [SKY]}, "a language-modelling data set; preference pairs need"),
        ({**PAIR, "prompt": "  "}, "the prompt is empty"),
        ({**PAIR, "prompt": 3}, "field 'prompt': expected text or a list of messages"),
        ({**PAIR, "prompt": []}, "field 'prompt': expected text or a list of messages"),
        ({**PAIR, "prompt": [{"role": "user"}]}, "expected text or a list of messages"),
        ({**PAIR, "chosen": [says("a")]}, "must both be text or both be lists of messages"),
        ({**PAIR, "chosen": 1, "rejected": 2}, "field 'chosen': expected text or a list"),
        ({**PAIR, "chosen": [], "rejected": [says("a")]}, "field 'chosen': expected text or a list"),
        ({"prompt": [SKY], "chosen": [says("a")], "rejected": [says("b", "user")]}, "'rejected' ends with the role"),
        (
            {"prompt": [SKY], "chosen": [says("a"), SKY, says("b")], "rejected": [says("c")]},
            "'chosen' holds 3 messages after the prompt; it may hold one",
        ),
        (
            {"chosen": [SKY, says("a"), SKY, says("b")], "rejected": [SKY, says("c"), SKY, says("d")]},
            "'chosen' holds 3 messages after the prompt; it may hold one",
        ),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "begin with no message in common"),
        ({"chosen": "blue", "rejected": "black"}, "begin with no word in common"),
        ({"prompt": [SKY], "chosen": [says(None)], "rejected": [says("b")]}, "content of a message must be text"),  # type: ignore[arg-type]
        ({**PAIR, "tools": "[{}]"}, "the field 'tools' is not supported"),
        (
            {"prompt": [{**SKY, "tool_calls": [{}]}], "chosen": [says("a")], "rejected": [says("b")]},
            "messages with 'tool_calls' are not supported",
        ),
        ({**PAIR, "score_chosen": 1.0}, "'score_chosen' alone says nothing"),
        ({**PAIR, "margin": math.inf}, "'margin' must be a finite number"),
        ({**PAIR, "margin": True}, "'margin' must be a finite number"),
        ({**PAIR, "score_chosen": "8", "score_rejected": 1}, "'score_chosen' must be a finite number"),
    ],
)
def test_mistakes_are_one_line_that_begins_with_the_place(record: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        read_preference(record, "pairs.jsonl:7")
    assert str(caught.value).startswith("pairs.jsonl:7")
    assert "\n" not in str(caught.value)


def test_columns_of_other_kinds_are_left_alone() -> None:
    """``datasets`` gives every row every column; the empty ones, and those that mean nothing here, do no harm."""
    record = {**PAIR, "tools": [], "images": None, "label": None, "source": "x", "margin": None}
    assert read_preference(record, "f:1").chosen == "a"
