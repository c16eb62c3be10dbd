"""A language model small enough to enumerate: what holds in expectation, shown exactly.

Four tokens, of which 0 ends a sequence, and at most four of them: 1 + 3 + 9 + 27 completions that end, and 81 that are
cut after four tokens. Together they are everything the model can say.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from align.losses.logps import pack_pairs, pair_logps
from align.losses.preference import xpo_bonus

END, TOKENS, LONGEST = 0, (1, 2, 3), 4
PROMPT = (2, 1)
ENDED = [(*body, END) for n in range(LONGEST) for body in itertools.product(TOKENS, repeat=n)]
CUT = list(itertools.product(TOKENS, repeat=LONGEST))
EVERYTHING = ENDED + CUT
REFERENCE, OTHER = 5, 9  # seeds of models that neither end at once nor never


def build(seed: int) -> Any:
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.train(False)


def logps(model: Any) -> tuple[Tensor, Tensor]:
    """Of everything as the chosen side, and, in reversed order, as the rejected side of the same rows."""
    rows = [(PROMPT, a, b) for a, b in zip(EVERYTHING, reversed(EVERYTHING), strict=True)]
    return pair_logps(model, pack_pairs(rows, pad_id=END), head_chunk=50)


def gradient(model: Any, value: Tensor) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])


def test_everything_adds_up_to_one() -> None:
    assert len(EVERYTHING) == len(set(EVERYTHING)) == 1 + 3 + 9 + 27 + 81
    chosen, rejected = logps(build(REFERENCE))
    assert chosen.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert rejected.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(chosen, rejected.flip(0), atol=1e-5, rtol=0)


def test_the_end_token_is_part_of_the_probability() -> None:
    # The prefixes of n tokens have together what is left when everything that ended before is taken away. So the end
    # token is counted: without it a completion would carry the probability of all its continuations.
    model = build(REFERENCE)
    with torch.no_grad():
        probability = dict(zip(EVERYTHING, logps(model)[0].exp().tolist(), strict=True))
        for n in range(1, LONGEST + 1):
            prefixes = list(itertools.product(TOKENS, repeat=n))
            got, _ = pair_logps(model, pack_pairs([(PROMPT, prefix, (END,)) for prefix in prefixes], pad_id=END))
            left = 1 - sum(probability[y] for y in ENDED if len(y) <= n)
            assert 0.05 < left < 0.95
            assert got.exp().sum().item() == pytest.approx(left, abs=1e-5)


def test_the_bonus_has_no_mean_gradient_at_the_reference() -> None:
    # sum_y pi(y) grad log pi(y) = grad sum_y pi(y) = grad 1 = 0. So the bonus is pure noise on samples of the policy
    # itself, and pushes away from the reference only where the policy has left it.
    policy, reference = build(REFERENCE), build(REFERENCE)
    chosen, rejected = logps(policy)
    with torch.no_grad():
        ref_chosen, ref_rejected = logps(reference)
    is_ref = torch.ones(len(EVERYTHING), dtype=torch.bool)
    bonus = xpo_bonus(chosen, rejected, ref_chosen, ref_rejected, is_ref, alpha=1.0)
    weights = ref_chosen.exp()
    mean = gradient(policy, (weights * bonus).sum())
    one = gradient(policy, bonus[0])
    assert one.norm() > 0.1
    assert mean.norm() < 1e-4 * one.norm()


def test_away_from_the_reference_the_mean_gradient_of_the_bonus_is_the_kl_gradient() -> None:
    # sum_y ref(y) grad log pi(y) = -grad KL(ref || pi): the bonus raises the forward KL.
    policy = build(OTHER)
    with torch.no_grad():
        ref_chosen, ref_rejected = logps(build(REFERENCE))
    chosen, rejected = logps(policy)
    is_ref = torch.ones(len(EVERYTHING), dtype=torch.bool)
    bonus = xpo_bonus(chosen, rejected, ref_chosen, ref_rejected, is_ref, alpha=1.0)
    mean = gradient(policy, (ref_chosen.exp() * bonus).sum())
    assert mean.norm() > 1e-2
    before = float((ref_chosen.exp() * (ref_chosen - chosen.detach())).sum())
    with torch.no_grad():
        offset = 0
        for p in policy.parameters():
            p -= 0.01 / mean.norm() * mean[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        after = float((ref_chosen.exp() * (ref_chosen - logps(policy)[0])).sum())
    # To first order the step of length 0.01 down the bonus raises the KL by 0.01 |gradient|.
    assert after - before == pytest.approx(0.01 * float(mean.norm()), rel=0.2)
