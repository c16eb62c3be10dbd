"""The plan: prefixes, splits without a text in common, and pairs of policies."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.corpus.config import CorpusConfig, PolicySpec
from rewards.polar.corpus.plan import cut_prefix, draw_pair, make_plan
from rewards.polar.types import PolarError
from rollouts.models import load_tokenizer
from rollouts.types import Message, Prompt


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def policies(mode: str, names: str = "abcX") -> tuple[PolicySpec, ...]:
    """A policy a letter; capitals are held out."""
    return tuple(PolicySpec(f"{mode}-{n}", f"tiny:{i}", mode, heldout=n.isupper()) for i, n in enumerate(names))  # type: ignore[arg-type]


def config(**changes: Any) -> CorpusConfig:
    values: dict[str, Any] = {
        "policies": (*policies("base"), *policies("chat")), "tokenizer": "tiny:0", "prefix_tokens": (1, 20),
        "validation_share": 0.2, "heldout_share": 0.2,
    }  # fmt: skip
    return CorpusConfig(**{**values, **changes})


def prompt(number: int, text: str | None = None) -> Prompt:
    return Prompt(f"q{number}", (Message("user", text or f"Question {number}?"),))


TEXTS = [(f"t{i}", f"{i} is where this text begins, and here it ends.") for i in range(40)]
PROMPTS = [prompt(i) for i in range(40)]


def test_a_prefix_is_cut_between_characters_and_leaves_a_rest(tokenizer: Any) -> None:
    text = "\u00e9\u00e8 \U0001f600 yes"  # the tiny tokenizer's tokens are bytes: 2, 2, 1, 4, 1 and 3 of them
    cuts = Counter(cut_prefix(text, tokenizer, (1, 20), random.Random(seed)) for seed in range(2000))
    assert set(cuts) == {"\u00e9", "\u00e9\u00e8", "\u00e9\u00e8 ", text[:4], text[:5], text[:6], text[:7]}
    # 12 cuts are equally likely, 4 of them in the last character of four bytes.
    assert cuts[text[:4]] == pytest.approx(2000 * 4 / 12, abs=5 * (2000 * 2 / 9) ** 0.5)


def test_prefix_lengths_stay_in_their_bounds(tokenizer: Any) -> None:
    lengths = {len(cut_prefix("x" * 30, tokenizer, (3, 7), random.Random(seed)) or "") for seed in range(200)}
    assert lengths == {3, 4, 5, 6, 7}
    assert cut_prefix("xxx", tokenizer, (3, 7), random.Random(0)) is None
    assert cut_prefix("xxxx", tokenizer, (3, 7), random.Random(0)) == "xxx"
    assert cut_prefix("   ", tokenizer, (1, 7), random.Random(0)) is None


def test_shares_are_exact_and_pairs_fit_their_split(tokenizer: Any) -> None:
    plan = make_plan(config(), PROMPTS, TEXTS, tokenizer)
    kept = Counter(item.mode for item in plan.items)
    assert kept["chat"] == 40
    assert Counter(i.split for i in plan.items if i.mode == "chat") == {
        "train": 24, "validation": 8, "heldout_policies": 8,
    }  # fmt: skip
    for item in plan.items:
        assert item.policy_a != item.policy_b
        assert item.policy_a.startswith(item.mode) and item.policy_b.startswith(item.mode)
        assert (item.split == "heldout_policies") == (item.policy_a.endswith("X") or item.policy_b.endswith("X"))


def test_both_roles_are_equally_likely_for_every_pair() -> None:
    pool, rng = policies("base"), random.Random(0)
    seen = Counter(tuple(p.name[-1] for p in draw_pair(pool, "train", rng)) for _ in range(12_000))
    assert len(seen) == 12
    assert all(count == pytest.approx(1000, abs=160) for count in seen.values())
    held = Counter(tuple(p.name[-1] for p in draw_pair(pool, "heldout_policies", rng)) for _ in range(600))
    assert set(held) == {*zip("XXX", "abc", strict=True), *zip("abc", "XXX", strict=True)}


def test_the_plan_depends_on_the_input_and_the_seed_alone(tokenizer: Any) -> None:
    plan = make_plan(config(), PROMPTS, TEXTS, tokenizer)
    assert make_plan(config(), PROMPTS, iter(TEXTS), tokenizer) == plan
    assert make_plan(config(seed=1), PROMPTS, TEXTS, tokenizer).items != plan.items
    assert make_plan(config(), PROMPTS, TEXTS[:-1], tokenizer).digest != plan.digest
    changed = [*PROMPTS[:-1], prompt(39, "Another?")]
    assert make_plan(config(), changed, TEXTS, tokenizer).digest != plan.digest


@given(st.lists(st.sampled_from(["aa", "ab", "aab", "b b", "bb bb", "c", ""]), min_size=6, max_size=40), st.integers())
def test_no_text_is_in_two_splits(tokenizer: Any, texts: list[str], seed: int) -> None:
    asked = [prompt(i, text or "-") for i, text in enumerate(texts)]
    settings = config(seed=seed, policies=(*policies("base"), *policies("chat")))
    continued = [*((str(i), f"{t} or so") for i, t in enumerate(texts)), ("x", "?!"), ("y", "!?")]
    plan = make_plan(settings, asked, continued, tokenizer)
    prompts = [item.text for item in plan.items]
    assert len(set(prompts)) == len(prompts)
    assert sum(plan.ledger[name] for name in ("prompts", "texts")) == (
        len(prompts) + plan.ledger["duplicates"] + plan.ledger["too_short"]
    )


def test_all_messages_of_a_prompt_are_its_text(tokenizer: Any) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    plan = make_plan(config(policies=policies("chat")), [Prompt("m", turns), *PROMPTS], [], tokenizer)
    assert plan.items[0].text == "Hi\nHello\nWhy?"


def test_a_mode_without_held_out_policies_has_no_prompts_for_them(tokenizer: Any) -> None:
    settings = config(policies=(*policies("base"), *policies("chat", "abc")))
    splits = Counter((item.mode, item.split) for item in make_plan(settings, PROMPTS, TEXTS, tokenizer).items)
    assert splits["chat", "heldout_policies"] == 0 < splits["base", "heldout_policies"]


@pytest.mark.parametrize(
    ("changes", "prompts", "texts", "message"),
    [
        ({}, [], TEXTS, "policy 'chat-a' is a chat policy, but there are no prompts for it"),
        ({}, PROMPTS, [], "policy 'base-a' is a base policy, but there are no texts for it"),
        ({"policies": policies("chat", "aX")}, PROMPTS, [], "prompts need at least two chat policies .* there are 1"),
        ({"policies": policies("chat")}, PROMPTS, TEXTS, "texts need at least two base policies .* there are 0"),
        ({}, [*PROMPTS, prompt(3, "Other?")], TEXTS, "two different prompts or texts have the id 'q3'"),
    ],
)
def test_sources_and_policies_must_fit(
    tokenizer: Any, changes: Any, prompts: list[Prompt], texts: Any, message: str
) -> None:
    with pytest.raises(PolarError, match=message) as caught:
        make_plan(config(**changes), prompts, texts, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": (*policies("base"), *policies("base"))}, "two policies are called 'base-X'"),
        ({"policies": policies("base", "abc")}, "no policy is held out"),
        ({"heldout_share": 0.0}, "policy 'base-X' is held out, but heldout_share is 0"),
        ({"validation_share": 0.9}, "together below 1"),
        ({"prefix_tokens": (5, 2)}, "shortest <= longest"),
        ({"positives_per_prompt": 1}, "positives_per_prompt of at least 2"),
        ({"length_tolerance": 1.0}, "length_tolerance must be"),
        ({"chunk_prompts": 0}, "must be at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(PolarError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"system_prompt": "Be brief."}, "a base policy has no system prompt"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"name": ""}, "has no name"),
    ],
)
def test_policies_without_a_meaning_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(PolarError, match=message):
        PolicySpec(**{"name": "p", "model": "tiny:0", "mode": "base", **changes})
