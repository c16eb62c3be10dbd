"""Texts to continue: passages of files, fields of records, and what is said when there is none."""

from pathlib import Path

import pytest

from rollouts.prompts import PromptError
from rollouts.texts import file_texts, record_texts


def test_paragraphs_are_put_together_until_a_passage_is_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\r\n\r\ntwo two\n\n\n\nthree\n\nfour\n\nend")
    assert list(file_texts(str(file), passage_chars=8)) == [
        (f"{file}:1", "one\n\ntwo two"),
        (f"{file}:2", "three\n\nfour"),
    ]
    # The rest counts when it is half a passage.
    assert [text for _, text in file_texts(str(file), passage_chars=6)][-1] == "end"
    assert len(list(file_texts(str(file), passage_chars=6, size=1))) == 1


def test_records_give_their_field_and_empty_ones_are_passed_over() -> None:
    records = [{"text": "a"}, {"text": "  "}, {"text": "b"}]
    assert list(record_texts(records, source="s", field="text")) == [("s:1", "a"), ("s:3", "b")]
    assert list(record_texts(records, source="s", field="text", size=1)) == [("s:1", "a")]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"body": "a"}], r"s, record 1: no field 'text' \(its fields: body\)"),
        ([{"text": "a"}, {"text": 3}], "s, record 2, field 'text': expected text, got int"),
    ],
)
def test_a_record_without_text_is_named(records: list[dict[str, object]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        list(record_texts(records, source="s", field="text"))


@pytest.mark.parametrize("path", ["nowhere.txt", "pkg:no_such_package/a.txt", "pkg:", "pkg:rollouts/none.txt"])
def test_a_file_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(PromptError, match=path):
        file_texts(path, passage_chars=10)


def test_a_file_inside_a_package(tmp_path: Path) -> None:
    [(name, text), *_] = file_texts("pkg:rollouts/texts.py", passage_chars=10)
    assert name == "pkg:rollouts/texts.py:1"
    assert text.startswith('"""Texts whose beginnings')
