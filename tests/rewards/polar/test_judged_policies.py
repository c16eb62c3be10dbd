"""Triples from judged policies: hand-made prompts, what a split promises, and the real file where it is at hand."""

import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.judged_policies import (
    JudgedPrompt,
    Response,
    TripleConfig,
    held_out_policies,
    judged_triples,
    read_judged,
)
from rewards.polar.prompt_categories import CATEGORIES, category_of
from rewards.polar.types import PolarError, Triple

SHARED = Path(os.environ.get("POLESTAR_SHARED", Path(__file__).resolve().parents[4] / "shared"))
REAL = SHARED / "data" / "alpaca_eval_policies.jsonl.gz"
needs_data = pytest.mark.skipif(not REAL.is_file(), reason="the AlpacaEval answers are not at hand (POLESTAR_SHARED)")


def judged(prompt: str, *responses: tuple[str, str, float]) -> JudgedPrompt:
    return JudgedPrompt(prompt, Response("base", "baseline"), tuple(Response(*r) for r in responses))


def texts(triples: list[Triple]) -> list[tuple[str, str, str]]:
    return [(str(t.reference), str(t.chosen), str(t.rejected)) for t in triples]


def test_the_margin_is_one_of_log_odds() -> None:
    # 0.01 against 0.0001 is ln(0.01 / 0.99) - ln(0.0001 / 0.9999) = 4.615 nats, though 0.0099 of probability.
    one = judged("q", ("a", "aa", 0.01), ("b", "bb", 0.0001))
    assert texts(judged_triples([one], TripleConfig(margin=4.6))) == [("baseline", "aa", "bb")]
    assert judged_triples([one], TripleConfig(margin=4.7)) == []
    [made] = judged_triples([one])
    assert made.metadata == {
        "category": "factual and other",
        "reference_policy": "base",
        "chosen_policy": "a",
        "rejected_policy": "b",
        "judge_margin": "4.6151",
    }
    assert (made.prompt, made.wrapper) == ("q", "sft")


def test_certain_preferences_are_far_apart_and_finite() -> None:
    ends = Response("a", "x", 0.0).log_odds, Response("a", "x", 1.0).log_odds
    assert ends == pytest.approx((math.log(1e-8), -math.log(1e-8)))
    assert Response("a", "x").log_odds == 0


def test_the_reference_is_the_best_of_three() -> None:
    one = judged("q", ("a", "aa", 0.9), ("b", "bb", 0.4), ("c", "cc", 0.01), ("d", "dd", 0.5))
    many = {"margin": 0.1, "per_prompt": 99}
    # What the judge prefers to the baseline, or likes as much, cannot stand below it.
    assert texts(judged_triples([one], TripleConfig(**many))) == [("baseline", "bb", "cc")]
    best = texts(judged_triples([one], TripleConfig(reference="best", **many)))
    assert set(best) == {("aa", "dd", "bb"), ("aa", "dd", "cc"), ("aa", "bb", "cc")}
    below = judged("q", ("b", "bb", 0.4), ("c", "cc", 0.01))
    assert texts(judged_triples([below], TripleConfig(reference="best"))) == [("baseline", "bb", "cc")]


def test_blank_answers_and_copies_are_no_candidates() -> None:
    one = judged("q", ("a", "baseline", 0.4), ("b", " \n", 0.3), ("c", "cc", 0.001), ("d", "cc", 0.2))
    assert judged_triples([one], TripleConfig(margin=0.1)) == []


def test_at_most_so_many_of_a_prompt_and_none_twice() -> None:
    one = judged("q", *((f"p{k}", "x" * (k + 1), 0.4 / 4**k) for k in range(8)))
    every = texts(judged_triples([one], TripleConfig(margin=0.1, per_prompt=99)))
    assert len(set(every)) == len(every) == 28
    few = texts(judged_triples([one], TripleConfig(margin=0.1, per_prompt=3)))
    assert len(set(few)) == 3 and set(few) < set(every)
    assert few == texts(judged_triples([one], TripleConfig(margin=0.1, per_prompt=3)))
    assert few != texts(judged_triples([one], TripleConfig(margin=0.1, per_prompt=3, seed=1)))


response = st.tuples(st.integers(1, 30), st.floats(1e-6, 0.49))


@given(st.lists(st.lists(response, min_size=2, max_size=8), min_size=1, max_size=5), st.sampled_from([2, 4]))
def test_balanced_triples_have_no_length_to_go_by(prompts: list[list[tuple[int, float]]], per_prompt: int) -> None:
    some = [
        judged(f"q{i}", *((f"p{k}", f"{k}" * length, p) for k, (length, p) in enumerate(row)))
        for i, row in enumerate(prompts)
    ]
    config = TripleConfig(margin=0.5, per_prompt=per_prompt, length="balanced", max_length_ratio=3)
    made = judged_triples(some, config)
    for i in range(len(some)):
        own = [(len(str(t.chosen)), len(str(t.rejected))) for t in made if t.prompt == f"q{i}"]
        assert sum(a > b for a, b in own) == sum(a < b for a, b in own) == len(own) / 2 <= per_prompt / 2
        assert all(max(pair) <= 3 * min(pair) for pair in own)
        assert len({(t.chosen, t.rejected) for t in made if t.prompt == f"q{i}"}) == len(own)


def test_balanced_triples_are_matched_in_size() -> None:
    # Better answers of 8, 6 and 3 characters, worse ones of 4 and 12: longer by 8/4 or 6/4, shorter by 12/8, 12/6,
    # 12/3 or 4/3. Each of the former has an equal among the latter.
    one = judged(
        "q", ("a", "a" * 8, 0.4), ("b", "b" * 6, 0.4), ("b3", "b" * 3, 0.4), ("c", "c" * 4, 1e-3), ("d", "d" * 12, 1e-3)
    )
    for seed in range(20):
        up, down = judged_triples([one], TripleConfig(length="balanced", seed=seed))
        longer, shorter = len(str(up.chosen)) / len(str(up.rejected)), len(str(down.rejected)) / len(str(down.chosen))
        assert longer == shorter


def crowd(prompts: int = 60, policies: int = 8) -> list[JudgedPrompt]:
    return [
        judged(f"q{i}", *((f"p{k}", f"{i}-{k}", 0.4 / 3 ** ((k * 7 + i) % policies)) for k in range(policies)))
        for i in range(prompts)
    ]


def used(triples: list[Triple]) -> set[str]:
    return {t.metadata[f"{side}_policy"] for t in triples for side in ("reference", "chosen", "rejected")} - {"base"}


@pytest.mark.parametrize("reference", ["baseline", "best"])
def test_policies_held_out_are_never_in_train(reference: Any) -> None:
    out = held_out_policies(crowd(), 3)
    assert len(out) == 3 and out != held_out_policies(crowd(), 3, seed=1)

    def make(split: Any, policies: Any) -> list[Triple]:
        return judged_triples(crowd(), TripleConfig(reference, held_out=3, split=split, policies=policies))

    train = make("train", "seen")
    assert used(train) == {f"p{k}" for k in range(8)} - out
    assert used(make("test", "held_out")) == out
    assert used(make("test", "seen")) == used(train)
    assert used(make("test", "all")) == {f"p{k}" for k in range(8)}


def test_prompts_are_split_by_their_own_hash() -> None:
    def prompts(split: Any, some: list[JudgedPrompt]) -> set[str]:
        return {str(t.prompt) for t in judged_triples(some, TripleConfig(split=split, test_share=0.25))}

    train, test = prompts("train", crowd()), prompts("test", crowd())
    assert train | test == prompts("all", crowd()) and not train & test
    # Binomial(60, 1/4): mean 15, standard deviation 3.4.
    assert 5 <= len(test) <= 25
    assert prompts("test", crowd()[::3]) == test & {p.prompt for p in crowd()[::3]}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"margin": 0.0}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"per_prompt": 0}, "per_prompt"),
        ({"per_prompt": 3, "length": "balanced"}, "per_prompt must be even"),
        ({"max_length_ratio": 0.9}, "max_length_ratio"),
        ({"test_share": 1.0}, "test_share"),
        ({"held_out": -1}, "held_out"),
        ({"split": "train", "held_out": 2, "policies": "all"}, "never in train"),
    ],
)
def test_settings_without_a_meaning_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(PolarError, match=message):
        TripleConfig(**setting)


def test_two_policies_must_be_left() -> None:
    assert len(held_out_policies(crowd(), 6)) == 6
    with pytest.raises(PolarError, match="7 of 8 policies cannot be held out"):
        judged_triples(crowd(), TripleConfig(held_out=7))


RECORD = {
    "prompt": "q",
    "baseline": {"policy": "base", "text": "x"},
    "responses": [{"policy": "a", "text": "aa", "preference": 0.25}],
}


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz"])
def test_files_are_read_packed_or_not(tmp_path: Path, name: str) -> None:
    raw = (json.dumps(RECORD) + "\n\n" + json.dumps(RECORD | {"prompt": "ü"}) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    first, second = read_judged(tmp_path / name)
    assert first == JudgedPrompt("q", Response("base", "x", 0.5), (Response("a", "aa", 0.25),))
    assert second.prompt == "ü"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 3}, "the prompt is no text"),
        ({"baseline": {"policy": "base"}}, "KeyError: 'text'"),
        ({"responses": [{"policy": "a", "text": None, "preference": 0.5}]}, "must be texts"),
        ({"responses": [{"policy": "a", "text": "x", "preference": 1.5}]}, "1.5 is not between 0 and 1"),
        ({"responses": [{"policy": "a", "text": "x", "preference": math.nan}]}, "nan is not between"),
        ({"responses": 3}, "TypeError"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(PolarError, match=message) as caught:
        read_judged(path)
    assert "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(RECORD).encode() * 99)[:-20])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    for name in ("absent.jsonl", "cut.jsonl.gz", "plain.jsonl.gz"):
        with pytest.raises(PolarError, match=f"{name} cannot be read"):
            read_judged(tmp_path / name)


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("What is the difference between HTML and JavaScript?", "coding"),
        ("Write a haiku about rain", "creative writing"),
        ("If a train goes 60 miles in 2 hours, what is 60 / 2?", "math and reasoning"),
        ("Draft an apology email to a customer", "writing and editing"),
        ("How do I build a fence?", "how-to and advice"),
        ("Who made Berlin", "factual and other"),
        ("", "factual and other"),
    ],
)
def test_categories_are_guessed_from_words(prompt: str, category: str) -> None:
    assert category_of(prompt) == category and category in CATEGORIES


@needs_data
def test_the_real_answers_give_triples_for_nearly_every_prompt() -> None:
    prompts = read_judged(REAL)
    assert len(prompts) == 523 and {len(p.responses) for p in prompts} == {18}
    log_odds = {(p.prompt, r.policy): r.log_odds for p in prompts for r in p.responses}
    made = judged_triples(prompts)
    assert len({t.prompt for t in made}) > 500 and max(Counter(t.prompt for t in made).values()) == 2
    for t in made:
        chosen, rejected = (log_odds[str(t.prompt), t.metadata[f"{side}_policy"]] for side in ("chosen", "rejected"))
        assert rejected + 2 <= chosen < 0
    balanced = judged_triples(prompts, TripleConfig(length="balanced"))
    assert len(balanced) > 900
    assert sum(len(t.chosen) > len(t.rejected) for t in balanced) == len(balanced) / 2
    assert {t.metadata["category"] for t in made} == set(CATEGORIES)
