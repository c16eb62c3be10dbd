"""The corpus from start to end: on synthetic policies, across kills, and on a real (tiny) model."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.polar.corpus.build import CorpusReport, build_corpus
from rewards.polar.corpus.config import SPLITS, CorpusConfig, PolicySpec
from rewards.polar.corpus.store import load_dataset, load_triples
from rewards.polar.types import PolarError
from rollouts.engines.base import Engine, EngineError
from rollouts.engines.hf_engine import HFEngine
from rollouts.models import load_causal_lm, load_tokenizer, merged, resolve
from rollouts.types import Message, Prompt
from tests.rewards.polar.corpus.scripted import WORDS, Host

POLICIES = (
    PolicySpec("red", "tiny:0", "base"),
    PolicySpec("sky", "tiny:1", "base"),
    PolicySpec("tree", "tiny:2", "base"),
    PolicySpec("mill", "tiny:3", "base", heldout=True),
    PolicySpec("red chat", "tiny:0", "chat", system_prompt="Be red."),
    PolicySpec("sky chat", "tiny:1", "chat"),
    PolicySpec("tree chat", "tiny:2", "chat", temperature=0.8),
)
CONFIG = CorpusConfig(
    policies=POLICIES, tokenizer="tiny:0", max_new_tokens=300, prefix_tokens=(1, 30), validation_share=0.2,
    heldout_share=0.2, chunk_prompts=16, shard_rows=30,
)  # fmt: skip
TEXTS = [(f"t{i}", f"{i} times the wind went round the house before it was still.") for i in range(120)]
PROMPTS = [Prompt(f"q{i}", (Message("user", f"What is {i}?"),)) for i in range(60)]


def build(folder: Path, host: Any, config: CorpusConfig = CONFIG, **changes: Any) -> CorpusReport:
    given: dict[str, Any] = {"prompts": PROMPTS, "texts": TEXTS, "say": lambda line: None, **changes}
    return build_corpus(config, folder, open_engine=host, **given)


def letters(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Frequencies of letters as an embedding."""
    counts = np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], dtype=float)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusReport, Host]:
    folder, host = tmp_path_factory.mktemp("corpus") / "whole", Host()
    return folder, build(folder, host, embed=letters), host


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_triple_is_two_samples_of_one_policy_and_one_of_another(finished: Any) -> None:
    folder, report, _ = finished
    models = {policy.name: policy.model for policy in POLICIES}
    for split in SPLITS:
        triples = load_triples(folder, split)
        assert len(triples) == report.triples[split] > 0
        for triple in triples:
            a, b = triple.metadata["policy_a"], triple.metadata["policy_b"]
            assert a != b and triple.metadata["split"] == split
            for text, policy in ((triple.reference, a), (triple.chosen, a), (triple.rejected, b)):
                assert isinstance(text, str)
                assert set(text.replace(".", "").split()) <= set(WORDS[models[policy]])
            assert len({triple.reference, triple.chosen, triple.rejected}) == 3
            assert ("mill" in (a, b)) == (split == "heldout_policies")


def test_prompts_are_prefixes_or_questions_and_never_a_system_prompt(finished: Any) -> None:
    folder, _, _ = finished
    texts, questions = dict(TEXTS), {p.id: p.messages[0].content for p in PROMPTS}
    for split in SPLITS:
        for triple in load_triples(folder, split):
            source, mode = triple.metadata["source"], triple.metadata["mode"]
            assert triple.wrapper == {"base": "pretrain", "chat": "sft"}[mode]
            if mode == "base":
                assert isinstance(triple.prompt, str)
                assert texts[source].startswith(triple.prompt) and 1 <= len(triple.prompt) <= 30
            else:
                assert triple.prompt == questions[source]


def test_splits_share_no_prompt(finished: Any) -> None:
    folder, _, _ = finished
    prompts = [{triple.prompt for triple in load_triples(folder, split)} for split in SPLITS]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def test_length_tells_nothing_and_content_does(finished: Any) -> None:
    """What makes the corpus worth learning from: the policies differ, and not by a shortcut."""
    _, report, _ = finished
    assert report.before["train"]["closest"].low > 0.5
    for split in SPLITS:
        for rule in ("longer", "shorter", "closest"):
            assert report.shortcuts[split][rule].at_chance, (split, rule)
        # Words are what these policies differ in, and letters tell their words.
        assert report.shortcuts[split]["embedding"].value > 0.9


def test_each_model_is_opened_once_and_asked_as_its_policies_are(finished: Any) -> None:
    _, _, host = finished
    assert host.opened == ["tiny:0", "tiny:1", "tiny:2", "tiny:3"]
    assert host.closed == 4
    tokenizer = load_tokenizer(resolve("tiny:0"))
    asked = [tokenizer.decode(request.prompt_ids) for call in host.engines[0].calls for request in call]
    chats = [text for text in asked if "<|im_start|>" in text]
    assert chats and len(chats) < len(asked)
    assert all(text.startswith("<|im_start|>system\nBe red.<|im_end|>\n<|im_start|>user\nWhat is ") for text in chats)


def test_lengths_are_those_of_the_named_tokenizer(finished: Any) -> None:
    folder, _, _ = finished
    rows = load_dataset(folder, "train")
    assert len(rows) == len(load_triples(folder, "train"))
    for row in rows:  # the tiny tokenizer's tokens are bytes
        for name in ("prompt", "reference", "chosen", "rejected"):
            assert row[f"{name}_tokens"] == len(row[name].encode())


def test_every_prompt_and_sample_is_accounted_for(finished: Any) -> None:
    folder, report, _ = finished
    ledger, card = report.ledger, json.loads((folder / "card.json").read_text())
    assert (
        ledger["prompts"] + ledger["texts"]
        == 180
        == sum(
            ledger[name]
            for name in ("duplicates", "too_short", "too_long", "triples", "too_few", "length_gap", "unbalanced")
        )
    )
    assert ledger["triples"] == sum(report.triples.values())
    sampled = 180 - ledger["duplicates"]
    assert sum(counts["samples"] for counts in report.cleaning.values()) == 7 * sampled
    assert card["ledger"] == ledger and card["cleaning"] == report.cleaning
    for split in SPLITS:
        part = card["splits"][split]
        assert sum(roles["a"] for roles in part["policies"].values()) == part["triples"] == report.triples[split]
        assert sum(part["histograms"]["chosen"].values()) == part["triples"]
    text = (folder / "card.md").read_text()
    assert "| train | closest |" in text and "Tokens of `rejected`" in text
    assert (folder / "lengths.png").stat().st_size > 1000


def test_shards_are_named_for_the_hub(finished: Any) -> None:
    folder, report, _ = finished
    count = -(-report.triples["train"] // 30)
    assert count > 1
    names = [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    assert sorted(file.name for file in (folder / "data").glob("train-*")) == names


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_killed_run_goes_on_to_the_same_bits(finished: Any, tmp_path: Path, calls: int) -> None:
    whole, report, _ = finished
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", Host(kill_after=calls), embed=letters)
    assert len(list((tmp_path / "c" / "raw").glob("*"))) == calls
    with pytest.raises(PolarError, match="no finished corpus there"):
        load_triples(tmp_path / "c", "train")
    host, told = Host(), []
    again = build(tmp_path / "c", host, embed=letters, progress=lambda done, total: told.append((done, total)))
    total = len(list((whole / "raw").glob("*")))
    assert told == [(i, total) for i in range(calls + 1, total + 1)]
    assert sum(len(engine.calls) for engine in host.engines) == total - calls
    assert contents(tmp_path / "c") == contents(whole)
    assert replace(again, folder=whole) == report


def test_a_kill_while_a_file_is_written_loses_that_file_alone(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = finished
    import pyarrow.parquet as pq

    write, calls = pq.write_table, []

    def torn(table: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        write(table, path, *args, **kwargs)
        calls.append(path)
        if len(calls) == 4:
            Path(path).write_bytes(b"PAR1 half")
            raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", Host(), embed=letters)
    build(tmp_path / "c", Host(), embed=letters)
    assert contents(tmp_path / "c") == contents(whole)


def test_a_finished_corpus_needs_no_engine(finished: Any) -> None:
    folder, report, _ = finished
    before, host = contents(folder), Host()
    assert build(folder, host, embed=letters) == report
    assert host.opened == []
    assert contents(folder) == before


def test_an_engine_that_fails_is_rebuilt_and_asked_again(finished: Any, tmp_path: Path) -> None:
    whole, _, _ = finished
    build(tmp_path / "c", Host(kill_after=3, error=EngineError("lost")), embed=letters)
    assert contents(tmp_path / "c") == contents(whole)
    with pytest.raises(OSError, match="gone"):
        build(tmp_path / "d", Host(kill_after=3, error=OSError("gone")))
    build(tmp_path / "d", Host(kill_after=0, error=OSError("gone")), embed=letters, recoverable=(OSError,))
    assert contents(tmp_path / "d") == contents(whole)


@pytest.mark.parametrize(
    ("changes", "sources", "message"),
    [
        ({"seed": 1}, {}, "seed was 0, now 1"),
        ({"policies": (replace(POLICIES[0], top_k=9), *POLICIES[1:])}, {}, r"policies\.0\.top_k was 50, now 9"),
        ({"policies": POLICIES[:-1]}, {}, "policies has other entries"),
        ({}, {"texts": TEXTS[:-1]}, "its prompts or texts were others"),
    ],
)
def test_another_configuration_is_refused(finished: Any, changes: Any, sources: Any, message: str) -> None:
    folder, _, _ = finished
    before = contents(folder)
    with pytest.raises(PolarError, match=message) as caught:
        build(folder, Host(), replace(CONFIG, **changes), **sources)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


def test_a_broken_raw_file_is_named(tmp_path: Path) -> None:
    build(tmp_path / "c", Host())
    first, second, *_ = sorted((tmp_path / "c" / "raw").glob("*"))
    kept = first.read_bytes()
    first.write_bytes(b"nonsense")
    with pytest.raises(PolarError, match=f"{first.name}: not a file of raw samples: remove it"):
        build(tmp_path / "c", Host())
    first.write_bytes(second.read_bytes())
    with pytest.raises(PolarError, match=f"{first.name}: holds samples of other prompts: remove it"):
        build(tmp_path / "c", Host())
    first.unlink()
    build(tmp_path / "c", Host())
    assert first.read_bytes() == kept


def test_prompts_that_do_not_fit_the_context_are_counted(tmp_path: Path) -> None:
    # 512 positions less 300 for the completion: 212 remain, and the template takes some.
    prompts = [*PROMPTS, Prompt("long", (Message("user", "x" * 205),))]
    assert build(tmp_path / "c", Host(), prompts=prompts).ledger["too_long"] == 1


def test_no_triple_at_all_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(PolarError, match=r"no triple is left \(.*too long\).*: give more prompts"):
        build(tmp_path / "c", Host(), replace(CONFIG, max_new_tokens=512))


def test_a_chat_policy_needs_a_template(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    model, tokenizer = resolve("tiny:0"), load_tokenizer(resolve("tiny:0"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    policies = (replace(POLICIES[4], model=str(bare)), *POLICIES[5:])
    with pytest.raises(PolarError, match=r"policy 'red chat': model .* has no chat template: use mode base"):
        build(tmp_path / "c", Host(), replace(CONFIG, policies=policies, heldout_share=0.0), texts=[])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of tiny:0 that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model = get_peft_model(
        load_causal_lm(resolve("tiny:0"), torch.float32), LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_once(adapter: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    folder = merged("tiny:0", str(adapter), tmp_path)
    assert merged("tiny:0", str(adapter), tmp_path) == folder
    ids = torch.tensor([[5, 9, 200, 77]])
    expected = PeftModel.from_pretrained(load_causal_lm(resolve("tiny:0"), torch.float32), str(adapter))
    with torch.no_grad():
        ours = load_causal_lm(folder, torch.float32)(ids).logits
        plain = load_causal_lm(resolve("tiny:0"), torch.float32)(ids).logits
        torch.testing.assert_close(ours, expected(ids).logits, atol=1e-4, rtol=1e-4)
        assert (ours - plain).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"adapter '.*absent': no adapter_config.json"):
        merged("tiny:0", str(tmp_path / "absent"))


@pytest.mark.slow
def test_a_real_engine_fills_a_corpus(adapter: Path, tmp_path: Path) -> None:
    """The transformers engine on random weights: text without sense, through every part of the pipeline."""
    opened: list[Path] = []

    @contextmanager
    def open_engine(folder: Path) -> Iterator[Engine]:
        opened.append(folder)
        engine = HFEngine(folder, max_context=160, batch_size=64)
        try:
            yield engine
        finally:
            engine.close()

    policies = (
        PolicySpec("base", "tiny:0", "base"),
        PolicySpec("hot", "tiny:0", "base", temperature=1.3, top_p=1.0, top_k=0),
        PolicySpec("adapted", "tiny:0", "base", adapter=str(adapter)),
    )
    config = replace(CONFIG, policies=policies, max_new_tokens=96, heldout_share=0.0, length_tolerance=0.6)
    rng = random.Random(0)
    texts = [(f"t{i}", "".join(rng.choices("abc de.", k=40))) for i in range(40)]
    report = build(tmp_path / "c", open_engine, config, texts=texts, prompts=[])
    assert len(opened) == 2
    triples = [triple for split in SPLITS for triple in load_triples(tmp_path / "c", split)]
    assert len(triples) == report.ledger["triples"] > 0
    seen = Counter(triple.metadata["policy_a"] for triple in triples)
    assert set(seen) <= {"base", "hot", "adapted"}
    for triple in triples:
        assert triple.wrapper == "pretrain"
        assert isinstance(triple.prompt, str) and dict(texts)[triple.metadata["source"]].startswith(triple.prompt)
        for text in (triple.reference, triple.chosen, triple.rejected):
            assert isinstance(text, str) and text.strip() and text == text.rstrip()
    assert sum(counts["samples"] for counts in report.cleaning.values()) == 7 * (40 - report.ledger["duplicates"])
