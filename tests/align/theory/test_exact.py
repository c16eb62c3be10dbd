"""The enumerated model: all completions, their probabilities, exact values, and the collector's contract."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from align.losses.logps import sequence_logps
from align.theory import exact
from align.theory.sequences import SequencesConfig, build_reference
from rollouts.models import load_causal_lm
from rollouts.types import Finish, Origin, WeightUpdate

CONFIG = SequencesConfig(rare=0.01)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reference(CONFIG, tmp_path_factory.mktemp("reference"), seed=0)


def collector(path: Path, weights: exact.MemoryWeights, pairs: int = 4, seed: int = 0) -> exact.ExactCollector:
    model = load_causal_lm(path, torch.float32)
    return exact.ExactCollector(model, CONFIG.completions, weights, pairs=pairs, seed=seed)


def test_all_completions_of_two_words_and_two_tokens() -> None:
    # One word (1) beside the end: the empty answer, (1, end), and (1, 1), cut at the length limit.
    assert exact.all_completions(2, 2) == ((0,), (1, 0), (1, 1))
    # Three words, three tokens: 1 + 3 + 9 ended, 27 cut.
    assert len(set(exact.all_completions(4, 3))) == 40


def test_the_probabilities_of_all_completions_sum_to_one(model_path: Path) -> None:
    table = exact.token_table(load_causal_lm(model_path, torch.float32), CONFIG.completions)
    assert np.exp(table.sum(1)).sum() == pytest.approx(1, abs=1e-12)


def test_the_table_is_the_models_own_log_probability_of_each_token(model_path: Path) -> None:
    model = load_causal_lm(model_path, torch.float32)
    table = exact.token_table(model, CONFIG.completions)
    for completion in ((0,), (3, 0), (1, 2, 3)):
        expected = sequence_logps(model, (*exact.PROMPT_IDS, *completion))
        row = table[CONFIG.completions.index(completion)]
        assert row[: len(completion)] == pytest.approx(expected, abs=1e-5)
        assert np.all(row[len(completion) :] == 0)


def test_the_reference_policy_is_the_one_that_was_asked_for(model_path: Path) -> None:
    # First token: 0.01 for the rare one, 0.33 for each other; then 1/4 each. P(good) = 0.01; P(3, 1, 2) = 0.01/16.
    logps = exact.token_table(load_causal_lm(model_path, torch.float32), CONFIG.completions).sum(1)
    assert np.exp(logps[CONFIG.good]).sum() == pytest.approx(0.01, rel=0.02)
    assert math.exp(logps[CONFIG.completions.index((3, 1, 2))]) == pytest.approx(0.01 / 16, rel=0.05)
    assert math.exp(logps[CONFIG.completions.index((0,))]) == pytest.approx(0.33, rel=0.02)


def test_suboptimality_of_two_completions_by_hand() -> None:
    # pi_ref = (1/2, 1/2), r = (1, 0), beta = 1: max J = log((e + 1)/2); J(pi_ref) = 1/2; pi* = (e, 1)/(e + 1).
    value = exact.RegularisedValue(np.array([1.0, 0.0]), np.log([0.5, 0.5]), beta=1.0)
    assert value.optimum == pytest.approx(math.log((math.e + 1) / 2))
    assert value.suboptimality(np.log([0.5, 0.5])) == pytest.approx(math.log((math.e + 1) / 2) - 0.5)
    assert value.suboptimality(np.log([math.e / (math.e + 1), 1 / (math.e + 1)])) == pytest.approx(0, abs=1e-12)
    # J of all mass on the first: 1 - log 2.
    assert value.suboptimality(np.array([0.0, -40.0])) == pytest.approx(math.log((math.e + 1) / 2) - 1 + math.log(2))


def test_a_rollout_holds_a_policy_and_a_reference_sample_with_exact_log_probabilities(model_path: Path) -> None:
    weights = exact.MemoryWeights()
    part = collector(model_path, weights, pairs=200)
    rollouts, _ = part.collect(1)
    assert len(rollouts) == 200
    logps = dict(zip(CONFIG.completions, part.policy_logps, strict=True))
    for rollout in rollouts:
        assert [c.origin for c in rollout.completions] == [Origin.POLICY, Origin.REFERENCE]
        for completion in rollout.completions:
            assert sum(completion.logprobs) == pytest.approx(logps[completion.token_ids])
            assert (completion.finish is Finish.STOP) == (completion.token_ids[-1] == 0)
    # The empty answer has probability 0.33: 4 standard deviations of 400 draws are 0.094.
    share = np.mean([c.token_ids == (0,) for r in rollouts for c in r.completions])
    assert abs(share - 0.33) < 0.1


def test_samples_depend_on_seed_and_step_alone(model_path: Path) -> None:
    first, again, other = (collector(model_path, exact.MemoryWeights(), 20, seed) for seed in (0, 0, 1))
    assert first.collect(3) == again.collect(3)
    assert first.collect(3) != first.collect(4)
    assert first.collect(3) != other.collect(3)


def test_the_policy_changes_by_published_weights_and_the_reference_never(model_path: Path) -> None:
    weights = exact.MemoryWeights()
    part = collector(model_path, weights, pairs=50)
    before, reference_before = part.policy_logps, [r.completions[1].token_ids for r in part.collect(1)[0]]
    moved = load_causal_lm(model_path, torch.float32)
    with torch.no_grad():
        moved.get_output_embeddings().weight[3] += 0.5 * moved.get_output_embeddings().weight[1]
    uri = weights.publish(moved.state_dict(), 1)
    probe = (0, 1, 2, 3)
    metrics = part.load_weights(WeightUpdate(1, uri, probe, sequence_logps(moved, probe)))
    assert metrics["sync/probe_gap_max"] == 0
    assert np.abs(part.policy_logps - before).max() > 0.01
    rollouts, _ = part.collect(1)
    assert [r.completions[1].token_ids for r in rollouts] == reference_before
    assert {r.completions[0].policy_version for r in rollouts} == {1}
    with pytest.raises(ValueError, match="published last"):
        part.load_weights(WeightUpdate(7, "memory:7"))


def test_a_collector_continues_from_its_state(model_path: Path) -> None:
    weights = exact.MemoryWeights()
    part = collector(model_path, weights)
    moved = load_causal_lm(model_path, torch.float32)
    with torch.no_grad():
        moved.get_output_embeddings().weight.mul_(1.5)
    part.load_weights(WeightUpdate(1, weights.publish(moved.state_dict(), 1)))
    fresh = collector(model_path, weights)
    fresh.load_state_dict(part.state_dict())
    assert fresh.collect(2) == part.collect(2)
