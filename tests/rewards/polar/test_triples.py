"""Triples in the public format, and triples of tasks with known answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.polar.triples import answer_triples, read_triples, write_triples
from rewards.polar.types import PolarError, Triple
from rewards.types import Score, ScoreFailure
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

PUBLIC = {
    "prompt": [{"role": "user", "content": "What is the capital of China?"}],
    "reference": [{"role": "assistant", "content": "Beijing."}],
    "chosen": [{"role": "assistant", "content": "Beijing."}],
    "rejected": [{"role": "assistant", "content": "Shanghai."}],
}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_the_public_format_is_read(tmp_path: Path) -> None:
    texts = {"prompt": "p", "reference": "", "chosen": "c", "rejected": "r", "wrapper": "pretrain"}
    chat, text = read_triples(lines(tmp_path / "t.jsonl", {**PUBLIC, "category": "facts", "n": 3}, "", texts))
    assert chat == Triple(
        (Message("user", "What is the capital of China?"),),
        (Message("assistant", "Beijing."),),
        (Message("assistant", "Beijing."),),
        (Message("assistant", "Shanghai."),),
        "sft",
        {"category": "facts"},
    )
    assert text == Triple("p", "", "c", "r", "pretrain")


messages = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.text()), min_size=1)
turns = st.text() | messages.map(tuple)
keys = st.text().filter(lambda k: k not in (*PUBLIC, "wrapper"))


@settings(max_examples=30)
@given(st.lists(st.builds(Triple, turns, turns, turns, turns, st.sampled_from(["sft", "pretrain"]),
                          st.dictionaries(keys, st.text())), min_size=1, max_size=4))  # fmt: skip
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, triples: list[Triple]) -> None:
    path = tmp_path_factory.mktemp("triples") / "t.jsonl"
    write_triples(path, triples)
    assert read_triples(path) == triples
    assert [file.name for file in path.parent.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", r"t.jsonl:2: not JSON"),
        ("[1]", r"t.jsonl:2: expected a JSON object, got list"),
        ({"prompt": "p", "chosen": "c"}, r"t.jsonl:2: no field 'reference' \(its fields: prompt, chosen\)"),
        ({**PUBLIC, "wrapper": "rl"}, r"t.jsonl:2, field 'wrapper': must be one of sft, pretrain, not 'rl'"),
        ({**PUBLIC, "wrapper": []}, r"t.jsonl:2, field 'wrapper': must be"),
        ({**PUBLIC, "rejected": []}, r"t.jsonl:2, field 'rejected': expected text or a list of messages"),
        ({**PUBLIC, "chosen": 3}, r"t.jsonl:2, field 'chosen': expected text"),
        ({**PUBLIC, "chosen": [{"role": "user"}]}, r"t.jsonl:2, field 'chosen': message 1 needs role and content"),
        ({**PUBLIC, "prompt": [*PUBLIC["prompt"], "x"]}, r"t.jsonl:2, field 'prompt': message 2 needs"),
    ],
)
def test_a_mistake_is_named_by_file_line_and_field(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(PolarError, match=message) as caught:
        read_triples(lines(tmp_path / "t.jsonl", PUBLIC, record))
    assert "\n" not in str(caught.value)


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolarError, match="holds no triples"):
        read_triples(lines(tmp_path / "t.jsonl", ""))
    with pytest.raises(PolarError, match="cannot be read"):
        read_triples(tmp_path / "absent.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", PUBLIC)
    before = path.read_bytes()
    with pytest.raises(PolarError, match="metadata cannot be called 'chosen'"):
        write_triples(path, [Triple("p", "r", "c", "x"), Triple("p", "r", "c", "x", metadata={"chosen": "c"})])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


def rollout(id: str, *texts: str, versions: str = "", reference: str | None = "3 + 4 = 7") -> Rollout:
    prompt = Prompt(id, (Message("user", f"{id}: 3 + 4?"),), reference, "7")
    marks = versions or "0" * len(texts)
    return Rollout(
        prompt,
        (1,),
        tuple(
            Completion((5, 2), (), text, Finish.STOP, Origin.POLICY, int(version))
            for text, version in zip(texts, marks, strict=True)
        ),
    )


def made(*args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
    return [(t.chosen, t.rejected) for t in answer_triples(*args, **kwargs)[0]]


def test_a_right_and_a_wrong_answer_of_similar_length() -> None:
    asked = rollout("q", "It is 7.", "I think that it may be 7", "No idea, 12", "8", "It is 9.")
    triples, ledger = answer_triples([asked])
    assert triples == [
        Triple(asked.prompt.messages, "3 + 4 = 7", "It is 7.", "It is 9.", "sft",
               {"id": "q", "policy_chosen": "policy:0", "policy_rejected": "policy:0"})
    ]  # fmt: skip
    assert ledger == {"triples": 1, "no_reference": 0, "no_right": 0, "no_wrong": 0}


def test_more_pairs_of_a_prompt_share_no_text() -> None:
    asked = rollout("q", "It is 7.", "I think that it may be 7", "No idea, 12", "It is 9.")
    assert made([asked], per_prompt=5) == [
        ("It is 7.", "It is 9."),
        ("I think that it may be 7", "No idea, 12"),
    ]


def test_one_policy_comes_before_one_length() -> None:
    asked = rollout("q", "It is 7.", "It is 9.", "Nothing but 9 it is", versions="010")
    assert made([asked]) == [("It is 7.", "Nothing but 9 it is")]
    assert made([rollout("q", "It is 7.", "It is 9.", versions="01")]) == [("It is 7.", "It is 9.")]


def test_rollouts_of_one_prompt_are_taken_together() -> None:
    asked = [rollout("q", "It is 7."), rollout("q", "It is 9.", "Nothing but 9 it is")]
    [triple], ledger = answer_triples(asked, policies=["small", "large"])
    assert (triple.metadata["policy_chosen"], triple.metadata["policy_rejected"]) == ("small", "large")
    assert ledger["triples"] == 1


def test_every_prompt_is_accounted_for() -> None:
    asked = [
        rollout("made", "7", "8"),
        rollout("wrong", "8", "9"),
        rollout("right", "7", "seven: 7"),
        rollout("bare", "7", "8", reference=None),
        rollout("copies", "3 + 4 = 7", "8"),  # the worked answer itself is no right answer to learn from
        rollout("empty", "", "8"),
    ]
    triples, ledger = answer_triples(asked)
    assert len(triples) == 1
    assert ledger == {"triples": 1, "no_reference": 1, "no_right": 3, "no_wrong": 1}


def test_partial_credit_and_failures_take_no_part() -> None:
    class Verifier:
        def score(self, rollouts: Any) -> list[list[Score]]:
            return [[1.0, 0.7, ScoreFailure("no"), 0.01]]

    asked = rollout("q", "7", "7!", "8", "a longer 9")
    assert made([asked], verifier=Verifier()) == [("7", "a longer 9")]


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="per_prompt"):
        answer_triples([], per_prompt=0)
    with pytest.raises(ValueError, match="1 policies were named for 0 rollouts"):
        answer_triples([], policies=["a"])
