"""Files scored into files: nothing lost, nothing twice, whatever stops the job; and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.client import RewardClient
from rewards.serve.files import Summary, folder_identity, score_file
from rewards.serve.wire import Identity
from rewards.types import ScoreFailure
from rollouts.types import Message
from tests.rewards.serve.native_server import NativeServer


class Lengths:
    """Scores by the output's length; a text "fail" fails, and call number ``dies`` does not return."""

    def __init__(self, dies: int | None = None, model: str = "m", weights: int | str = 1) -> None:
        self.calls: list[list[PolarItem]] = []
        self.dies = dies
        self.who = Identity(model, weights)

    def score_items(self, items: Sequence[PolarItem]) -> list[ItemScore]:
        if len(self.calls) == self.dies:
            raise KeyboardInterrupt
        self.calls.append(list(items))
        return [self._score(item) for item in items]

    def identity(self) -> Identity:
        return self.who

    @staticmethod
    def _score(item: PolarItem) -> ItemScore:
        cut = frozenset({"output", "prompt"}) if item.output == "cut" else frozenset[str]()
        score = ScoreFailure("too long") if item.output == "fail" else float(len(item.output))
        return ItemScore(score, cut, 0, 5)


class Told:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self, total: int, done: int) -> None:
        self.events.append(("start", total, done))

    def advance(self, items: int, failed: int) -> None:
        self.events.append((items, failed))

    def close(self) -> None:
        self.events.append("close")


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def one(output: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "q", "reference": "r", "output": output, **more}


def group(*outputs: str) -> dict[str, Any]:
    return {"prompt": "q", "reference": "r", "outputs": list(outputs)}


def test_every_record_becomes_a_line_with_its_reward(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "数"}]
    given = [
        one("aaa", id="x", wrapper="pretrain", tags=[1, None]),
        one("fail"),
        {"prompt": chat, "reference": [{"role": "assistant", "content": "r"}], "outputs": ["a", "fail", "cut"]},
    ]
    scorer, told = Lengths(), Told()
    source, target = write(tmp_path / "in.jsonl", *given), tmp_path / "new" / "out.jsonl"
    summary = score_file(source, target, scorer, progress=told)
    who = {"model": "m", "weights": 1}
    assert read(target) == [
        {**given[0], "reward": 3.0, "truncated": [], **who},
        {**given[1], "error": "too long", "truncated": [], **who},
        {
            **given[2],
            "rewards": [1.0, None, 3.0],
            "errors": [None, "too long", None],
            "truncated": [[], [], ["output", "prompt"]],
            **who,
        },
    ]
    [items] = scorer.calls
    assert items[0] == PolarItem("q", "r", "aaa", "pretrain")
    turns = (Message("system", "s"), Message("user", "数"))
    assert items[4] == PolarItem(turns, (Message("assistant", "r"),), "cut")
    assert (summary.items, summary.failed, summary.kept) == (5, 2, 0) and summary.seconds > 0
    assert told.events == [("start", 5, 0), (5, 2), "close"]


def test_batches_are_of_whole_records(tmp_path: Path) -> None:
    scorer = Lengths()
    source = write(tmp_path / "in.jsonl", one("a"), group("a", "b", "c"), one("d"), one("e"), one("f"))
    score_file(source, tmp_path / "out.jsonl", scorer, batch_items=3)
    assert [len(call) for call in scorer.calls] == [4, 3]


def test_an_empty_file_gives_an_empty_file(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    assert score_file(source, target, Lengths()).items == 0
    assert target.read_bytes() == b""


# Stops.


def test_a_stopped_job_goes_on_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(one("a" * i) for i in range(10)))
    target = tmp_path / "out.jsonl"
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        score_file(source, target, Lengths(dies=2), batch_items=3, progress=told)
    assert told.events[-1] == "close"
    assert [line["reward"] for line in read(target)] == [float(i) for i in range(6)]
    scorer, told = Lengths(), Told()
    summary = score_file(source, target, scorer, batch_items=3, progress=told)
    assert (summary.items, summary.kept) == (4, 6)
    assert told.events[0] == ("start", 10, 6)
    assert sum(map(len, scorer.calls)) == 4
    whole = tmp_path / "whole.jsonl"
    score_file(source, whole, Lengths())
    assert target.read_bytes() == whole.read_bytes()
    assert score_file(source, target, scorer) == Summary(0, 0, 10, pytest.approx(0, abs=60))


@given(data=st.data())
def test_whatever_part_was_written_the_end_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A machine that stops may leave any beginning of the file, half lines included."""
    folder = tmp_path_factory.mktemp("cut")
    outputs = data.draw(st.lists(st.text(max_size=5) | st.just("\ud800"), min_size=1, max_size=6))
    source = write(folder / "in.jsonl", *(one(text) for text in outputs), group("é", "fail"))
    whole, target = folder / "whole.jsonl", folder / "out.jsonl"
    score_file(source, whole, Lengths())
    target.write_bytes(whole.read_bytes()[: data.draw(st.integers(0, whole.stat().st_size))])
    score_file(source, target, Lengths(), batch_items=2)
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda records: [one("other"), *records[1:]],
        lambda records: [records[1], records[0], *records[2:]],
        lambda records: records[:1],
        lambda records: [{**records[0], "id": True}, *records[1:]],
    ],
)
def test_a_result_of_another_file_is_left_alone(tmp_path: Path, change: Any) -> None:
    records = [one("a", id=1), one("bb"), one("ccc")]
    source, target = write(tmp_path / "in.jsonl", *records), tmp_path / "out.jsonl"
    score_file(source, target, Lengths())
    before = target.read_bytes()
    write(source, *change(records))
    with pytest.raises(RewardError, match=r"out\.jsonl:[12]: is not the scored form of .*: write to another") as caught:
        score_file(source, target, Lengths())
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == before


def test_a_file_that_is_no_result_is_left_alone(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", one("a")), tmp_path / "notes.txt"
    target.write_text("my notes\n")
    with pytest.raises(RewardError, match=r"notes\.txt:1: is not the scored form of .*in\.jsonl:1"):
        score_file(source, target, Lengths())
    assert target.read_text() == "my notes\n"


def test_the_source_is_not_written_over(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", one("a"))
    with pytest.raises(RewardError, match="is the file to be scored"):
        score_file(source, tmp_path / "." / "in.jsonl", Lengths())
    assert read(source) == [one("a")]


@pytest.mark.parametrize("other", [Lengths(model="n"), Lengths(weights=2), Lengths(weights="1")])
def test_scores_of_two_models_do_not_stand_in_one_file(tmp_path: Path, other: Lengths) -> None:
    source, target = write(tmp_path / "in.jsonl", one("a"), one("b")), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(source, target, Lengths(dies=1), batch_items=1)
    with pytest.raises(
        RewardError, match=r"was scored by m \(weights 1\), not by .*: write to another file, or remove"
    ):
        score_file(source, target, other)
    assert len(read(target)) == 1 and not other.calls


def test_weights_that_change_on_the_way_end_the_job(tmp_path: Path) -> None:
    class Swapped(Lengths):
        def score_items(self, items: Sequence[PolarItem]) -> list[ItemScore]:
            self.who = Identity("m", 1 + len(self.calls))
            return super().score_items(items)

    source, target = write(tmp_path / "in.jsonl", one("a"), one("b")), tmp_path / "out.jsonl"
    with pytest.raises(RewardError, match=r"m \(weights 1\) became m \(weights 2\) before .*in\.jsonl:2"):
        score_file(source, target, Swapped(), batch_items=1)
    assert len(read(target)) == 1


# What is refused.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"reference": "r", "output": "o"}', "'prompt' is missing"),
        ('{"prompt": "q", "output": "o"}', "'reference' is missing"),
        ('{"prompt": "q", "reference": "r"}', "give either 'output', or a list 'outputs'"),
        ('{"prompt": "q", "reference": "r", "output": "o", "outputs": ["o"]}', "give either 'output', or"),
        ('{"prompt": "q", "reference": "r", "outputs": []}', "'outputs' must be a list of candidates"),
        ('{"prompt": "q", "reference": "r", "outputs": "o"}', "'outputs' must be a list of candidates"),
        ('{"prompt": "q", "reference": "r", "outputs": ["o", 1]}', "'outputs[1]' must be text, or a list of messages"),
        ('{"prompt": 1, "reference": "r", "output": "o"}', "'prompt' must be text, or a list of messages"),
        ('{"prompt": [{"role": "user"}], "reference": "r", "output": "o"}', "'prompt' must be text, or"),
        ('{"prompt": "q", "reference": null, "output": "o"}', "'reference' must be text, or"),
        ('{"prompt": "q", "reference": "r", "output": "o", "wrapper": "chat"}', "wrapper 'chat' is unknown"),
        ('{"prompt": "q", "reference": "r", "output": "o", "wrapper": []}', "wrapper '[]' is unknown"),
        ('{"prompt": "q", "reference": "r", "output": "o", "reward": 1}', "'reward' is a name that scoring writes"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_scored(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(one("a")) + "\n\n" + line + "\n")
    scorer = Lengths()
    with pytest.raises(RewardError) as caught:
        score_file(source, tmp_path / "out.jsonl", scorer)
    assert str(caught.value).startswith(f"{source}:3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not scorer.calls and not (tmp_path / "out.jsonl").exists()


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"nothing\.jsonl: cannot be read .*: check the path$"):
        score_file(tmp_path / "nothing.jsonl", tmp_path / "out.jsonl", Lengths())


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", one("a"))
    with pytest.raises(RewardError, match=r"cannot be written .*: choose another path"):
        score_file(source, source / "out.jsonl", Lengths())


def test_a_scorer_that_loses_items_is_found_out(tmp_path: Path) -> None:
    class Lossy(Lengths):
        def score_items(self, items: Sequence[PolarItem]) -> list[ItemScore]:
            return super().score_items(items)[1:]

    source = write(tmp_path / "in.jsonl", one("a"), one("b"))
    with pytest.raises(RewardError, match="gave 1 scores for 2 items"):
        score_file(source, tmp_path / "out.jsonl", Lossy())
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_who_scores_must_be_known(tmp_path: Path) -> None:
    class Nameless:
        score_items = Lengths().score_items

    source = write(tmp_path / "in.jsonl", one("a"))
    with pytest.raises(RewardError, match="needs identity"):
        score_file(source, tmp_path / "out.jsonl", Nameless())
    score_file(source, tmp_path / "out.jsonl", Nameless(), identity=lambda: Identity("n", "sha256:00"))
    assert read(tmp_path / "out.jsonl")[0]["weights"] == "sha256:00"


def test_a_folder_is_known_by_its_weights(tmp_path: Path) -> None:
    def folder(name: str, weights: bytes, config: bytes = b"{}") -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_bytes(config)
        (tmp_path / name / "README.md").write_text(name)
        return tmp_path / name

    first = folder_identity("m", folder("a", b"1"))
    assert first.model == "m" and str(first.weights).startswith("sha256:")
    assert folder_identity("m", folder("b", b"1")) == first
    others = {folder_identity("m", folder("c", b"2")), folder_identity("m", folder("d", b"1", b"{ }"))}
    assert len({first, *others}) == 3
    with pytest.raises(RewardError, match="holds no safetensors files"):
        folder_identity("m", tmp_path)


def test_a_server_scores_a_file_as_a_scorer_in_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = NativeServer()
    source, target = write(tmp_path / "in.jsonl", *(one("a" * i) for i in range(50)), one("fail")), tmp_path / "out"
    try:
        with RewardClient(server.url) as client:
            # Before the first answer the list of models tells the weights; this server tells others there.
            with pytest.raises(RewardError, match=r"tiny \(weights 6\) became tiny \(weights 7\) before .*:1"):
                score_file(source, target, client)
            summary = score_file(source, target, client, batch_items=20)
    finally:
        server.close()
    assert (summary.items, summary.failed) == (51, 1)
    lines = read(target)
    assert [line.get("reward") for line in lines] == [*(float(i) - 1 for i in range(50)), None]
    assert lines[-1]["error"] == "item_failed: too long"
    assert {(line["model"], line["weights"]) for line in lines} == {("tiny", 7)}
