"""The load test: it measures what clients see, asks every server the same, and runs as a command on a tiny model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.bench.load import Dialect, Group, Load, LoadError, Measured, drive, in_turn, percentile
from align.bench.serve import Shape, Writer, build, main, render, summarise
from align.errors import UserError
from rollouts.models import load_tokenizer

GROUPS = tuple(
    Group(f"p{n}", f"r{n}", (f"{n}", f"{n + 10}"), (f"<{n}>", f"<{n + 10}>")) for n in range(5)
)  # the score of an output is the number that it is


def answer(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    """As the two servers answer."""
    if dialect == "vllm":
        assert body["use_activation"] is False, "raw numbers, no sigmoid"
        return {"data": [{"index": i, "probs": [float(t.strip("<>"))]} for i, t in enumerate(body["input"])]}
    return {"data": [{"index": i, "reward": float(item["output"])} for i, item in enumerate(body["items"])]}


def load(dialect: Dialect, concurrency: int) -> Load:
    return Load("http://server", dialect, "polar", GROUPS, concurrency)


@pytest.mark.parametrize("dialect", ["polestar", "vllm"])
@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_every_request_is_asked_once_and_so_many_at_a_time(dialect: Dialect, concurrency: int) -> None:
    inside, most, paths = 0, 0, []

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        paths.append(request.url.path)
        await asyncio.sleep(0.001)
        inside -= 1
        return httpx.Response(200, json=answer(dialect, json.loads(request.content)))

    measured = asyncio.run(drive(load(dialect, concurrency), httpx.MockTransport(handle)))
    assert measured.scores == tuple((float(n), float(n + 10)) for n in range(5))
    assert most == min(concurrency, 5)
    assert paths == ["/classify" if dialect == "vllm" else "/v1/score"] * 5
    assert len(measured.latencies) == 5
    assert 0 < max(measured.latencies) <= measured.seconds


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(503, text="busy"), "answered 503: busy"),
        (httpx.Response(200, json={"data": [{"reward": 1.0}]}), "another number of scores"),
        (httpx.Response(200, json={"data": [{"error": {"code": "engine"}}] * 2}), "without scores"),
    ],
)
def test_an_answer_without_scores_is_no_measurement(reply: httpx.Response, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        asyncio.run(drive(load("polestar", 2), httpx.MockTransport(lambda request: reply)))


def test_waiting_for_a_loop_is_by_hand() -> None:
    # Two clients; requests take 1, 2 and 4 seconds. The third is sent when the first is answered, after one second.
    assert in_turn([1, 2, 4], 2) == (1, 3, 6)
    assert in_turn([1, 2, 4], 1) == (1, 2, 4)
    assert in_turn([1, 2, 4], 9) == (1, 3, 7)
    assert in_turn([], 4) == ()


@given(durations=st.lists(st.integers(1, 100), min_size=1, max_size=20), concurrency=st.integers(1, 25))
def test_a_loop_makes_its_clients_wait_for_everything_before_them(durations: list[int], concurrency: int) -> None:
    waits = in_turn(durations, concurrency)
    assert all(wait >= duration for wait, duration in zip(waits, durations, strict=True))
    # Little's law in a closed loop: with enough requests the mean number inside is the concurrency.
    assert sum(waits) <= concurrency * sum(durations)
    assert waits == in_turn(durations, concurrency), "nothing is random"


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50, 99, 100)
    assert (percentile([3.0], 50), percentile([1.0, 2.0, 3.0], 50), percentile([1.0, 2.0], 99)) == (3, 2, 2)


def test_rates_are_medians_and_waits_are_of_all_repeats() -> None:
    fast = [Measured(1.0, (0.5, 1.0), ((1.0, 2.0), (3.0,))), Measured(3.0, (1.5, 3.0), ((1.0, 2.0), (3.0,)))]
    level = summarise(4, {"ours": fast, "loop": [Measured(6.0, (3.0, 6.0), ((1.0, 2.0), (3.01,)))] * 2})
    assert level["arms"]["ours"] == {
        "items_per_s": 2.0,
        "min_items_per_s": 1.0,
        "max_items_per_s": 3.0,
        "p50_s": 1.0,
        "p99_s": 3.0,
        "requests": 4,
    }
    assert level["max_difference"] == pytest.approx(0.01)
    report = {"levels": [level], "shape": {"candidates": 2, "prompt": 1, "reference": 2, "output": 3}}
    report |= {"model": "m", "dtype": "d", "repeats": 2, "seed": 0, "commit": "c", "cpus": 2, "machine": "x"}
    table = render(report).splitlines()
    assert table[2].split() == ["4", "ours", "2.00", "1.00", "3.00", "1.00", "3.00", "4.00"]
    assert table[3].split() == ["4", "loop", "0.50", "0.50", "0.50", "3.00", "6.00", "1.00"]


def test_servers_that_disagree_are_no_comparison() -> None:
    """Scores 1 and 3 spread by 1; scores (2, 3) are sqrt(1/2) = 0.71 from them, and (1.4, 3) are 0.28."""

    def arm(*scores: float) -> list[Measured]:
        return [Measured(1.0, (1.0,), (scores,))]

    with pytest.raises(UserError, match=r"'ours' gives other scores: 0\.707 apart .* spread by 1$"):
        summarise(1, {"ours": arm(2.0, 3.0), "loop": arm(1.0, 3.0)})
    assert summarise(1, {"ours": arm(1.4, 3.0), "loop": arm(1.0, 3.0)})["max_difference"] == pytest.approx(0.4)


def test_texts_have_their_length_and_are_never_the_same(tiny_model: Path, tmp_path: Path) -> None:
    shape = Shape(candidates=3, prompt=5, reference=7, output=9)
    folder = build(tiny_model, tmp_path, "float32", shape).folder
    groups = Writer(folder, shape).groups(4)
    assert groups == Writer(folder, shape).groups(4), "every arm is asked the same"
    tokenizer: Any = load_tokenizer(folder)
    texts = [text for g in groups for text in (g.prompt, g.reference, *g.outputs)]
    assert [len(tokenizer(t)["input_ids"]) for t in texts] == [5, 7, 9, 9, 9] * 4
    assert len(set(texts)) == len(texts)
    for group in groups:
        head = f"{group.prompt}\n{group.reference}<|reward|>{group.prompt}\n"
        assert group.rendered == tuple(f"{head}{output}[UNUSED_TOKEN_130]" for output in group.outputs)


@pytest.mark.parametrize("options", [{"items": 0}, {"concurrency": (0,)}, {"repeats": 0}, {"arms": ("theirs",)}])
def test_what_cannot_be_measured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        main("tiny:0", **options)


@pytest.mark.slow
def test_the_command_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every arm serves the same weights and gives the same scores: what disagrees is an error."""
    monkeypatch.chdir(tmp_path)
    shape = Shape(candidates=4, prompt=20, reference=30, output=30)
    assert main("tiny:0", items=8, concurrency=(1, 3), shape=shape, dtype="float32") == 0
    report = json.loads((tmp_path / "runs" / "bench" / "serve.json").read_text())
    assert [level["concurrency"] for level in report["levels"]] == [1, 3]
    for level in report["levels"]:
        assert list(level["arms"]) == ["ours", "ours, no prefix reuse", "vLLM server", "plain loop"]
        assert all(arm["requests"] == max(2, level["concurrency"]) for arm in level["arms"].values())
        assert all(arm["items_per_s"] > 0 and arm["p99_s"] >= arm["p50_s"] > 0 for arm in level["arms"].values())
        assert level["spread"] > 100 * level["max_difference"]
    assert "items/s" in capsys.readouterr().out
