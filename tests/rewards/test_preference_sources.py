"""Sources of preference records: the same records from every kind of file, whole or streamed, and exact places."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from rewards.preference_data import Located, PairReader, ReadConfig
from rewards.preference_sources import (
    DatasetStream,
    FilePairs,
    GymPairs,
    HubPairs,
    JsonlPairs,
    RecordStream,
    gym_pairs,
    name_of,
    open_records,
    open_stream,
)
from rewards.types import ScoredPair
from rewards.verifiers import VerifierScorer
from rollouts.chat import ChatRenderer
from rollouts.models import load_tokenizer
from rollouts.prompts import PromptError, gym_prompts, question_of
from rollouts.types import Rollout

ROWS = [{"prompt": f"What is {i} + 1?", "chosen": f"{i + 1}", "rejected": f"{i + 2} é"} for i in range(23)]
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
Source = JsonlPairs | FilePairs


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def jsonl(folder: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def parquet(folder: Path) -> str:
    Dataset.from_list(ROWS).to_parquet(folder / "pairs.parquet", batch_size=5)
    return str(folder / "pairs.parquet")


def csv(folder: Path) -> str:
    Dataset.from_list([{**row, "chosen": f"is {row['chosen']}"} for row in ROWS]).to_csv(folder / "pairs.csv")
    return str(folder / "pairs.csv")


def folder_of_parts(folder: Path) -> str:
    data = folder / "parts"
    data.mkdir()
    for i in range(3):
        Dataset.from_list(ROWS[i * 8 : i * 8 + 8]).to_parquet(data / f"train-{i:05d}-of-00003.parquet")
    Dataset.from_list(ROWS[:2]).to_parquet(data / "test-00000-of-00001.parquet")
    return str(data)


def saved(folder: Path) -> str:
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder: Path) -> str:
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}).save_to_disk(folder / "dict")
    return str(folder / "dict")


MAKERS: list[Callable[[Path], Source]] = [
    lambda folder: JsonlPairs(jsonl(folder)),
    lambda folder: FilePairs(jsonl(folder)),
    lambda folder: FilePairs(parquet(folder)),
    lambda folder: FilePairs(csv(folder)),
    lambda folder: FilePairs(folder_of_parts(folder)),
    lambda folder: FilePairs(saved(folder)),
    lambda folder: FilePairs(saved_splits(folder)),
]
NAMES = ["jsonl", "json", "parquet", "csv", "folder", "saved", "saved splits"]


def fields(records: list[Located]) -> list[dict[str, Any]]:
    return [{**record} for _, record in records]


def everything(stream: RecordStream, at_once: int) -> list[Located]:
    records: list[Located] = []
    while part := stream.read(at_once):
        records += part
    return records


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_every_kind_of_file_holds_the_same_records_whole_and_streamed(
    make: Callable[[Path], Source], tmp_path: Path
) -> None:
    source = make(tmp_path)
    whole, stream = open_records(source), open_stream(source)
    expected = ROWS if not name_of(source).endswith("csv") else [{**r, "chosen": f"is {r['chosen']}"} for r in ROWS]
    assert fields(list(whole)) == expected
    streamed = everything(stream, 7)
    assert streamed == list(whole)
    assert whole[-1:] == streamed[-1:]
    line = ":23" if isinstance(source, JsonlPairs) else ", record 23"
    assert streamed[-1][0] == name_of(source) + line
    assert stream.read(5) == []
    stream.rewind(0)
    assert stream.read(1) == streamed[:1]


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_a_stream_goes_on_from_any_place_in_any_epoch(make: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make(tmp_path)
    for epoch in (0, 2):
        one, other = open_stream(source), open_stream(source)
        one.rewind(epoch)
        whole = everything(one, 6)
        assert sorted(r["prompt"] for _, r in whole) == sorted(r["prompt"] for r in ROWS)
        for first, second in ((0, 3), (1, 1), (5, 4), (8, 8), (22, 1), (23, 1)):
            one.rewind(epoch)
            one.read(first)
            # Through JSON: the state is plain, and shares nothing with the stream that goes on.
            state = json.loads(json.dumps(one.state_dict()))
            one.read(3)
            other.load_state_dict(state)
            assert other.state_dict() == state
            got = other.read(second)
            assert got == whole[first : first + second]
            again = json.loads(json.dumps(other.state_dict()))
            one.load_state_dict(again)
            assert one.read(50) == whole[first + second :]


@given(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=4), st.integers(0, 2))
def test_places_in_data_of_several_parts(parts: int, reads: list[int], epoch: int) -> None:
    def stream() -> DatasetStream:
        return DatasetStream(Dataset.from_dict({"n": range(14)}).to_iterable_dataset(num_shards=parts), "d")

    whole = stream()
    whole.rewind(epoch)
    records = everything(whole, 5)
    assert sorted(record["n"] for _, record in records) == list(range(14))
    one = stream()
    one.rewind(epoch)
    taken: list[Located] = []
    for count in reads:
        taken += one.read(count)
        state = json.loads(json.dumps(one.state_dict()))
        one = stream()
        one.load_state_dict(state)
    assert taken + one.read(20) == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "q"}\n{"prompt": ', r"pairs\.jsonl:2: not JSON"),
        ("[1]", r"pairs\.jsonl:1: expected a JSON object, got list"),
    ],
)
def test_mistakes_in_a_json_lines_file_name_the_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    for read in (open_records, lambda source: open_stream(source).read(9)):
        with pytest.raises(PromptError, match=message):
            read(JsonlPairs(str(path)))


def test_mistakes_in_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("text")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    cases = [
        ("none.parquet", "no such file or folder: check the path"),
        ("pairs.txt", "unknown kind of file: expected .parquet"),
        ("bad.parquet", "cannot be loaded"),
        ("bad.json", "cannot be loaded"),
        ("empty", "cannot be loaded"),
        ("empty.jsonl", "cannot be loaded .it is empty."),
    ]
    for name, message in cases:
        for read in (open_records, lambda source: open_stream(source).read(1)):
            with pytest.raises(PromptError, match=message) as caught:
                read(FilePairs(str(tmp_path / name)))
            assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match="it has no split 'validation'"):
        open_records(FilePairs(saved_splits(tmp_path), split="validation"))
    with pytest.raises(PromptError, match="No such file"):
        open_records(JsonlPairs(str(tmp_path / "none.jsonl")))


def test_the_hub_without_a_network_is_one_line() -> None:
    with pytest.raises(PromptError, match=r"^hub:no-such-org/no-such-set: cannot be loaded .*check name and network"):
        open_records(HubPairs("no-such-org/no-such-set"))


def test_gym_pairs_are_right_and_wrong_by_the_task_s_own_verifier(tiny_model: Path) -> None:
    source = GymPairs("chain_sum", size=60, seed=3, config=SUMS)
    records = gym_pairs(source)
    prompts = gym_prompts("chain_sum", size=60, seed=3, config=SUMS)
    reader = PairReader(ChatRenderer(load_tokenizer(tiny_model)), ReadConfig())
    scorer = VerifierScorer(threshold=1.0)
    for record, prompt in zip(records, prompts, strict=True):
        pair = reader.pair(record)
        assert isinstance(pair, ScoredPair)
        assert question_of(pair.prompt) == question_of(prompt)
        assert scorer.score([Rollout(prompt, pair.prompt_ids, (pair.chosen, pair.rejected))]) == [[1.0, 0.0]]
    assert records == gym_pairs(source) and records == open_records(source)
    others = gym_pairs(GymPairs("chain_sum", size=60, seed=4, config=SUMS))
    assert fields(records) != fields(others)


def test_gym_pairs_keep_off_the_held_out_questions() -> None:
    source = GymPairs("chain_sum", size=40, seed=3, config=SUMS)
    asked = [record["prompt"][0]["content"] for _, record in gym_pairs(source)]
    exclude = frozenset(asked[:20])
    records = open_records(source, exclude)
    assert len(records) == 40
    assert not exclude & {record["prompt"][0]["content"] for _, record in records}


def test_gym_pairs_want_whole_numbers() -> None:
    with pytest.raises(PromptError, match="which is not a whole number: choose a task such as chain_sum"):
        gym_pairs(GymPairs("letter_jumble", size=2, seed=0))
