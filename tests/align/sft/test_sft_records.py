"""What may be trained on: TRL's two formats, and clear words about anything else."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.sft.config import Evaluation, ExploreExecuteData, SFTConfig, WorkedData
from align.sft.records import asked, check_lengths, fit_template, jsonl_examples, worked_examples
from rollouts.chat import ChatRenderer
from rollouts.models import load_tokenizer
from rollouts.types import Message, Prompt

TEXT = {"prompt": "4 + 3 =", "completion": " 7"}
CHAT = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "4 + 3 ="}],
    "completion": [{"role": "assistant", "content": "7"}],
}
QUESTION = "State the final answer to the following arithmetic problem: 4 + 3 - 9 ="


def file(folder: Path, *records: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("record", [TEXT, CHAT])
def test_both_of_trls_formats_are_read_as_they_are(tmp_path: Path, record: dict[str, Any]) -> None:
    assert jsonl_examples(file(tmp_path, record | {"source": "x"}, record)) == [record, record]
    assert jsonl_examples(file(tmp_path, record, record), size=1) == [record]
    assert asked(record) == "4 + 3 ="


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([TEXT, {"prompt": "4 + 3 ="}], r"record 2: no field 'completion'.*it has: prompt"),
        ([{"text": "4 + 3 = 7"}], r"record 1: no field 'prompt'"),
        ([{"prompt": CHAT["prompt"], "completion": "7"}], r"record 1: prompt is chat and completion is text"),
        ([TEXT, CHAT], r"record 2: is chat, the records before are not"),
        ([TEXT | {"completion": ""}], r"record 1, field 'completion': expected text"),
        ([TEXT | {"prompt": [{"content": "4"}]}], r"record 1, field 'prompt': expected text, or a list of messages"),
        ([], "holds no record"),
    ],
)
def test_other_records_are_refused_by_number(tmp_path: Path, records: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jsonl_examples(file(tmp_path, *records))


def test_worked_answers_are_the_prompts_own_or_written_out() -> None:
    prompt = Prompt("a", (Message("user", QUESTION),), reference="4 + 3 - 9 = -2", answer="-2")
    again = Prompt("b", (Message("user", QUESTION),), reference="another")
    for answers, text in (("reference", "4 + 3 - 9 = -2"), ("steps", "4 + 3 = 7; 7 - 9 = -2. Answer: -2")):
        [record] = worked_examples([prompt, again], WorkedData(answers=answers))  # type: ignore[arg-type]
        assert record == {
            "prompt": [{"role": "user", "content": QUESTION}],
            "completion": [{"role": "assistant", "content": text}],
        }


def test_a_prompt_without_a_worked_answer_is_refused() -> None:
    with pytest.raises(UserError, match="'a' has no worked answer"):
        worked_examples([Prompt("a", (Message("user", "?"),))], WorkedData())


def test_without_a_chat_template_a_conversation_becomes_the_text_that_the_policy_is_asked(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    assert fit_template([CHAT], tokenizer) == [CHAT]
    tokenizer.chat_template = None
    [fitted] = fit_template([CHAT], tokenizer)
    assert fitted == {"prompt": "Be brief.\n\n4 + 3 =", "completion": "7"}
    messages = tuple(Message(m["role"], m["content"]) for m in CHAT["prompt"])
    assert tuple(tokenizer.encode(fitted["prompt"])) == ChatRenderer(tokenizer).prompt_ids(Prompt("a", messages))
    assert fit_template([TEXT], tokenizer) == [TEXT]


def test_a_record_that_would_be_cut_is_refused(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    # A token a byte: 7 of the prompt, 2 of the completion, and the end of the sequence.
    check_lengths([TEXT], tokenizer, 10)
    longer = TEXT | {"completion": " 7!"}
    with pytest.raises(UserError, match=r"record 2 has 11 tokens, and 1 of 2 have more than sft.max_length=10"):
        check_lengths([TEXT, longer], tokenizer, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SFTConfig(lr=0.0), "sft.lr must be above 0"),
        (lambda: SFTConfig(batch_size=6, micro_batch_size=4), "must be a multiple of sft.micro_batch_size"),
        (lambda: SFTConfig(log_every=4, checkpoint_every=6), "must be a multiple of sft.log_every"),
        (lambda: ExploreExecuteData(attempts=0), "data.attempts must be above 0"),
        (lambda: Evaluation(max_new_tokens=8, plan_tokens=8), "evaluation.plan_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
