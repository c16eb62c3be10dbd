"""Items in, scores out: order, groups, failures of single items, and the probe that finds what is no raw logit."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rewards.polar.encoding import PolarEncoder
from rewards.polar.probe import DIFFERENT, IDENTICAL, Reading, check_raw, plain_readings
from rewards.polar.scorer import ItemScore, PolarScorer, open_scorer
from rewards.polar.types import PolarError, PolarItem, Rendered
from rewards.types import ScoreFailure
from rollouts.engines.base import EngineError
from rollouts.engines.classifier import Logit
from rollouts.engines.hf_classifier import HFClassifier
from rollouts.models import load_classifier
from rollouts.types import Message
from tests.tiny import build_tiny_classifier

CONTEXT = 256
QUESTION = "Which is the longest river of Africa?"
ITEMS = [
    PolarItem(QUESTION, "The Nile.", "It is the Nile."),
    PolarItem("Name a colour.", "Blue.", "Red."),
    PolarItem(QUESTION, "The Nile.", "The Congo"),
    PolarItem((Message("user", QUESTION),), (Message("assistant", "The Nile."),), "The Nile."),
    PolarItem(QUESTION, "The Nile.", "It is the Nile.", "pretrain"),
    PolarItem(QUESTION, "The Congo.", "It is the Nile."),
    PolarItem(QUESTION, "The Nile.", ""),
]


class Fake:
    """A classifier that answers with a function of each sequence, and remembers what it was asked."""

    def __init__(self, value: Callable[[tuple[int, ...]], float], context: int = CONTEXT) -> None:
        self._value, self._context = value, context
        self.asked: list[tuple[int, ...]] = []

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Logit]:
        self.asked = [tuple(sequence) for sequence in sequences]
        return [Logit(self._value(sequence), len(sequence) // 2) for sequence in self.asked]

    def max_context(self) -> int:
        return self._context

    def rebuild(self) -> None:
        self.asked.clear()

    def close(self) -> None:
        self.asked.clear()


def total(sequence: tuple[int, ...]) -> float:
    return float(sum((i + 1) * token for i, token in enumerate(sequence)))


@pytest.fixture(scope="module")
def tokenizer(tiny_classifier: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tiny_classifier))


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> PolarEncoder:
    return PolarEncoder(tokenizer, max_length=CONTEXT, max_response_length=64)


@pytest.fixture(scope="module")
def real(tiny_classifier: Path, encoder: PolarEncoder) -> PolarScorer:
    return PolarScorer(HFClassifier(tiny_classifier, max_context=CONTEXT), encoder)


def alone(encoder: PolarEncoder, item: PolarItem) -> tuple[int, ...]:
    return tuple(encoder.encode(item.prompt, item.reference, item.output, item.wrapper))


def number(score: ItemScore) -> float:
    assert isinstance(score.score, float), score
    return score.score


class TestItems:
    def test_scores_are_the_plain_logits_of_the_encoders_tokens(
        self, real: PolarScorer, encoder: PolarEncoder, tiny_classifier: Path
    ) -> None:
        scores = real.score_items(ITEMS)
        sequences = [alone(encoder, item) for item in ITEMS]
        expected = [reading.last for reading in plain_readings(tiny_classifier, sequences)]
        assert [number(score) for score in scores] == pytest.approx(expected, abs=1e-4)
        assert [score.tokens for score in scores] == [len(ids) for ids in sequences]
        assert len(set(expected)) == len(ITEMS), "prompt, reference, output and wrapper all count"

    def test_a_group_is_computed_together(self, real: PolarScorer) -> None:
        scores = real.score_items([ITEMS[0], ITEMS[1], ITEMS[2]])
        head = len(f"{QUESTION}\nThe Nile.") + 1 + len(f"{QUESTION}\n")  # bytes are tokens, the separator is one
        assert [score.cached_tokens for score in scores] == [0, 0, head]

    def test_of_no_items_are_none(self, real: PolarScorer) -> None:
        assert real.score_items([]) == []

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.text("xyz", max_size=4)), max_size=9))
    def test_each_item_gets_its_own(self, encoder: PolarEncoder, drawn: list[tuple[str, str, str]]) -> None:
        items = [PolarItem(*texts) for texts in drawn]
        scores = PolarScorer(Fake(total), encoder).score_items(items)
        assert [number(score) for score in scores] == [total(alone(encoder, item)) for item in items]

    def test_candidates_are_judged_on_one_prompt(self, tokenizer: Any) -> None:
        """The longest candidate decides how much of the prompt all see; reference and wrapper make other groups."""
        encoder = PolarEncoder(tokenizer, max_length=64, max_response_length=20)
        prompt = "".join(chr(ord("a") + i % 26) for i in range(60))
        items = [PolarItem(prompt, "R", "short"), PolarItem(prompt, "R", "l" * 20), PolarItem(prompt, "S", "short")]
        fake = Fake(total)
        scores = PolarScorer(fake, encoder).score_items(items)
        short, long, other = (tokenizer.decode(list(ids)) for ids in fake.asked)
        room = (64 - 4 - 1 - 20) // 2
        assert short == f"{prompt[-room:]}\nR<|reward|>{prompt[-room:]}\nshort[UNUSED_TOKEN_130]"
        assert long == f"{prompt[-room:]}\nR<|reward|>{prompt[-room:]}\n{'l' * 20}[UNUSED_TOKEN_130]"
        assert other.startswith(prompt[-((64 - 4 - 1 - 5) // 2) :])
        assert [score.truncated for score in scores] == [{"prompt"}] * 3

    def test_rendered_texts_are_scored_as_they_are(self, encoder: PolarEncoder) -> None:
        scorer = PolarScorer(Fake(total), encoder)
        item = ITEMS[0]
        text = encoder.render(item.prompt, item.reference, item.output)
        rendered, broken, plain, unended = scorer.score_items(
            [Rendered(text), Rendered(text + "<|reward|>"), item, Rendered(text.removesuffix("[UNUSED_TOKEN_130]"))]
        )
        assert rendered == plain
        for failed in (broken, unended):
            assert isinstance(failed.score, ScoreFailure) and "'[UNUSED_TOKEN_130]' once at its end" in str(failed)


class TestFailures:
    def test_what_cannot_be_encoded_fails_alone(self, encoder: PolarEncoder) -> None:
        bad = PolarItem(QUESTION, "The Nile.", "half a \ud800 pair")
        scores = PolarScorer(Fake(total), encoder).score_items([ITEMS[0], bad, ITEMS[1], ITEMS[2]])
        assert isinstance(scores[1].score, ScoreFailure) and "surrogate" in scores[1].score.reason
        assert (scores[1].truncated, scores[1].cached_tokens, scores[1].tokens) == (frozenset(), 0, 0)
        assert [number(scores[i]) for i in (0, 2, 3)] == [total(alone(encoder, ITEMS[i])) for i in (0, 1, 2)]

    def test_a_candidate_that_leaves_no_room_fails_alone(self, tokenizer: Any) -> None:
        encoder = PolarEncoder(tokenizer, max_length=40, max_response_length=36)
        long, short = PolarItem(QUESTION, "R", "l" * 36), PolarItem(QUESTION, "R", "short")
        scores = PolarScorer(Fake(total), encoder).score_items([long, short])
        assert isinstance(scores[0].score, ScoreFailure) and "max_length 40" in scores[0].score.reason
        assert number(scores[1]) == total(alone(encoder, short))

    def test_a_prompt_that_cannot_be_encoded_fails_its_group(self, encoder: PolarEncoder) -> None:
        bad = [PolarItem("\ud800", "R", output) for output in ("a", "b")]
        scores = PolarScorer(Fake(total), encoder).score_items([*bad, ITEMS[0]])
        assert [isinstance(score.score, ScoreFailure) for score in scores] == [True, True, False]

    def test_an_item_too_long_for_the_engine_fails_alone(self, encoder: PolarEncoder) -> None:
        short = PolarItem("", "", "x")
        scores = PolarScorer(Fake(total, context=20), encoder).score_items([ITEMS[0], short])
        assert isinstance(scores[0].score, ScoreFailure) and "the engine takes 20" in scores[0].score.reason
        assert number(scores[1]) == total(alone(encoder, short))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_no_number_is_no_score(self, encoder: PolarEncoder, value: float) -> None:
        wanted = alone(encoder, ITEMS[1])
        scorer = PolarScorer(Fake(lambda ids: value if ids == wanted else 1.5), encoder)
        first, second = scorer.score_items(ITEMS[:2])
        assert number(first) == 1.5
        assert isinstance(second.score, ScoreFailure) and "not a finite number" in second.score.reason
        assert second.tokens == len(wanted)

    def test_an_engine_that_fails_is_not_a_failed_item(self, encoder: PolarEncoder) -> None:
        def fail(_: tuple[int, ...]) -> float:
            raise EngineError("dead; call rebuild()")

        with pytest.raises(EngineError, match="dead"):
            PolarScorer(Fake(fail), encoder).score_items(ITEMS)

    def test_a_closed_scorer_comes_back_by_rebuilding(self, tiny_classifier: Path, encoder: PolarEncoder) -> None:
        scorer = PolarScorer(HFClassifier(tiny_classifier, max_context=CONTEXT), encoder)
        before = scorer.score_items(ITEMS)
        scorer.close()
        with pytest.raises(EngineError, match="closed"):
            scorer.score_items(ITEMS)
        scorer.rebuild()
        assert scorer.score_items(ITEMS) == before


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class TestProbe:
    def answering(self, folder: Path, encoder: PolarEncoder, value: Callable[[Reading], float]) -> PolarScorer:
        sequences = [alone(encoder, item) for item in (IDENTICAL, DIFFERENT)]
        table = dict(zip(sequences, plain_readings(folder, sequences), strict=True))
        return PolarScorer(Fake(lambda ids: value(table[ids])), encoder)

    def test_raw_logits_pass(self, real: PolarScorer, encoder: PolarEncoder, tiny_classifier: Path) -> None:
        probe = real.probe(tiny_classifier)
        sequences = [alone(encoder, item) for item in (IDENTICAL, DIFFERENT)]
        expected = [reading.last for reading in plain_readings(tiny_classifier, sequences)]
        assert [probe.identical, probe.different] == pytest.approx(expected, abs=1e-4)
        assert probe.gap < 1e-4

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (lambda r: sigmoid(r.last), r"returns sigmoid\(logit\).*use_activation=false"),
            (lambda r: r.mean, r"averages the scores of all tokens.*LAST pooling"),
            (lambda r: 2 * r.last + 1, "its weights, its tokens or its pooling are not those of this folder"),
            (lambda r: math.nan, "the classifier gives nan, nan"),
        ],
    )
    @pytest.mark.parametrize("tolerance", [2e-3, 0.05])
    def test_anything_else_is_named(
        self,
        tiny_classifier: Path,
        encoder: PolarEncoder,
        value: Callable[[Reading], float],
        message: str,
        tolerance: float,
    ) -> None:
        with pytest.raises(PolarError, match=message) as caught:
            self.answering(tiny_classifier, encoder, value).probe(tiny_classifier, tolerance)
        assert "\n" not in str(caught.value)

    def test_readings_by_hand(self, tiny_classifier: Path) -> None:
        model: Any = load_classifier(tiny_classifier, torch.float32)
        [reading] = plain_readings(tiny_classifier, [(5, 6, 7)])
        with torch.no_grad():
            hidden = model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0]
            logits = model.score(hidden)[:, 0]
            size = float(torch.linalg.norm(hidden[2] * model.score.weight[0]))
        assert reading.last == pytest.approx(float(logits[2]), abs=1e-5)
        assert reading.mean == pytest.approx(float(logits.sum()) / 3, abs=1e-5)
        assert reading.size == pytest.approx(size, abs=1e-4)

    def test_an_untrained_head_tells_a_sigmoid_too(self) -> None:
        zero = [Reading(0.0, 0.0, 0.0)] * 2
        assert check_raw([0.0, 0.0], zero, 0.05) == 0.0
        with pytest.raises(PolarError, match="sigmoid"):
            check_raw([0.5, 0.5], zero, 0.05)

    def test_a_wide_tolerance_does_not_hide_a_squashed_score(self) -> None:
        """Terms of size 50 allow 2.5 at bfloat16; what is nearer to the sigmoid is the sigmoid."""
        readings = [Reading(1.2, 0.1, 50.0), Reading(-0.6, 0.1, 50.0)]
        with pytest.raises(PolarError, match="sigmoid"):
            check_raw([sigmoid(1.2), sigmoid(-0.6)], readings, 0.05)
        assert check_raw([1.3, -0.7], readings, 0.05) == pytest.approx(0.1)


class TestOpening:
    def test_on_transformers(self, tiny_classifier: Path) -> None:
        scorer = open_scorer(tiny_classifier, backend="transformers", dtype="float32", prefix_reuse=False)
        assert [score.cached_tokens for score in scorer.score_items(ITEMS)] == [0] * len(ITEMS)

    def test_limits_are_the_models_unless_others_are_wanted(self, tiny_classifier: Path) -> None:
        """512 and 128 tokens in the folder; bytes are tokens."""
        items = [PolarItem("p" * 600, "R", "o" * 300)]

        def tokens(**options: Any) -> int:
            scorer = open_scorer(tiny_classifier, backend="transformers", dtype="float32", probe=False, **options)
            [score] = scorer.score_items(items)
            assert isinstance(score.score, float)
            return score.tokens

        room = (512 - 4 - 1 - 128) // 2
        assert tokens() == 4 + 1 + 128 + 2 * room
        room = (512 - 4 - 1 - 40) // 2
        assert tokens(max_response_length=40) == 4 + 1 + 40 + 2 * room
        assert 90 < tokens(max_context=100) <= 100

    def test_a_probe_that_fails_closes_the_engine(self, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = []
        logits, close = HFClassifier.logits, HFClassifier.close

        def squashed(self: HFClassifier, sequences: Sequence[Sequence[int]]) -> list[Logit]:
            return [Logit(sigmoid(logit.value)) for logit in logits(self, sequences)]

        monkeypatch.setattr(HFClassifier, "logits", squashed)
        monkeypatch.setattr(HFClassifier, "close", lambda self: closed.append(close(self)))
        with pytest.raises(PolarError, match="sigmoid"):
            open_scorer(tiny_classifier, backend="transformers", dtype="float32")
        assert len(closed) == 1
        open_scorer(tiny_classifier, backend="transformers", dtype="float32", probe=False)

    def test_mistakes_are_one_line(self, tiny_classifier: Path, tiny_model: Path) -> None:
        for folder, options, message in (
            (tiny_classifier, {"backend": "sglang"}, "unknown backend 'sglang'; choose vllm or transformers"),
            (tiny_model, {"backend": "transformers"}, "no key 'polar'"),
        ):
            with pytest.raises(PolarError, match=message) as caught:
                open_scorer(folder, **options)
            assert "\n" not in str(caught.value)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_on_vllm_and_what_vllm_gives_by_default(
        self, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
    ) -> None:
        from rollouts.engines.vllm_classifier import VLLMClassifier

        options = {"dtype": dtype, "kv_cache_gib": 0.02, "max_num_seqs": 8, "max_context": CONTEXT}
        plain = open_scorer(tiny_classifier, backend="transformers", dtype="float32", max_context=CONTEXT)
        scorer = open_scorer(tiny_classifier, **options)
        try:
            found = [number(score) for score in scorer.score_items(ITEMS)]
            expected = [number(score) for score in plain.score_items(ITEMS)]
            assert found == pytest.approx(expected, abs=1e-3 if dtype == "float32" else 0.5)
            engine: Any = scorer._classifier
            encode = engine._engine().encode
            monkeypatch.setattr(engine._engine(), "encode", lambda ids, _, **rest: encode(ids, **rest))
            with pytest.raises(PolarError, match=r"returns sigmoid\(logit\)"):
                scorer.probe(tiny_classifier, 0.05)
            assert isinstance(engine, VLLMClassifier)
        finally:
            scorer.close()

    @pytest.mark.slow
    def test_an_untrained_head_opens(self, tmp_path: Path) -> None:
        folder = build_tiny_classifier(tmp_path / "zero", spread=0.0)
        scorer = open_scorer(folder, kv_cache_gib=0.02, max_num_seqs=8, max_context=CONTEXT)
        try:
            assert [number(score) for score in scorer.score_items(ITEMS)] == [0.0] * len(ITEMS)
        finally:
            scorer.close()
