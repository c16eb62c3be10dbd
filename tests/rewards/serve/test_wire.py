"""Properties of the wire: parts that lose nothing, answers that may arrive in any pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import BadRequest, ProtocolError
from rewards.failures import explained
from rewards.serve.wire import MAX_ANSWER_BYTES, NDJSON, Question, chunks, read_score
from rewards.transport import Deadline


def question(count: int) -> Question[Any]:
    payloads = [b'{"n":%d}' % i for i in range(count)]
    return Question("http://x/v1/score", "items", payloads, read_score, model=None, deadline=Deadline(None))


@given(st.lists(st.binary(max_size=30), max_size=40), st.integers(1, 10), st.integers(1, 60))
def test_parts_hold_everything_once_and_no_more_than_allowed(payloads: list[bytes], items: int, size: int) -> None:
    parts = chunks(payloads, items, size)
    assert [i for part in parts for i in part] == list(range(len(payloads)))
    for part in parts:
        assert 1 <= len(part) <= items
        assert len(part) == 1 or sum(len(payloads[i]) + 1 for i in part) <= size + 1


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.data())
def test_a_stream_in_any_pieces_is_the_same_answer(rewards: list[float], data: st.DataObject) -> None:
    head = json.dumps({"model": "m", "weight_version": 3, "items": len(rewards)})
    rows = [json.dumps({"index": i, "reward": r}, indent=None) for i, r in enumerate(rewards)]
    text = "\n".join([head, "", *rows]).encode() + data.draw(st.sampled_from([b"", b"\n", b"\r\n\n"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    asked = question(len(rewards))
    asked.content()
    asked.begin(f"{NDJSON}; charset=utf-8")
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        asked.feed(text[start:end])
    asked.end()
    assert [score.score for score in asked.take()] == rewards
    assert (asked.identity.model, asked.identity.weights) == ("m", 3)


def test_what_has_been_taken_is_not_asked_for_again() -> None:
    asked = question(3)
    assert json.loads(asked.content()) == {"items": [{"n": 0}, {"n": 1}, {"n": 2}]}
    asked.begin(NDJSON)
    asked.feed(b'{"model": "m"}\n{"index": 0, "reward": 1}\n{"index": 1, "rew')
    assert [score.score for score in asked.take()] == [1.0]
    assert json.loads(asked.content()) == {"items": [{"n": 1}, {"n": 2}]}
    asked.begin("application/json")
    asked.feed(b'{"data": [{"index": 0, "reward": 2}, {"index": 1, "reward": 3}]}')
    asked.end()
    assert [score.score for score in asked.take()] == [2.0, 3.0]
    assert asked.located(BadRequest("no", 1)).item == 2


def test_an_endless_answer_is_not_kept() -> None:
    asked = question(1)
    asked.content()
    asked.begin("application/json")
    block = b" " * (MAX_ANSWER_BYTES // 4)
    for _ in range(4):
        asked.feed(block)
    with pytest.raises(ProtocolError, match="answered with more than"):
        asked.feed(b" ")


@pytest.mark.parametrize(
    ("body", "text", "item"),
    [
        (b'{"error": {"code": "invalid", "message": "items[12].output: no"}}', "items[12].output: no", 12),
        (b'{"error": {"code": "invalid", "message": "pairs[0].first: no"}}', "pairs[0].first: no", 0),
        (b'{"error": {"message": "no", "item": 3}}', "no", 3),
        (b'{"error": "no"}', '{"error": "no"}', None),
        (b"a\n b", "a b", None),
        (b"\xff", "\ufffd", None),
        (b"[" * 100_000, "[" * 200, None),
        (b"", "", None),
    ],
)
def test_errors_are_explained_in_one_line(body: bytes, text: str, item: int | None) -> None:
    assert explained(body) == (text, item)
