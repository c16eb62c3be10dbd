"""Packed, shared-prompt, chunked log-probabilities against the plain form: one sequence, full softmax."""

import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.losses.logps import (
    CHOSEN,
    PROMPT,
    REJECTED,
    _liger_cross_entropy,
    pack_pairs,
    pair_logps,
    pair_mask,
    sequence_logps,
    token_logps,
)
from rollouts.models import load_causal_lm

Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
TRIPLES: list[Triple] = [
    ((5, 6, 7), (8, 9, 2), (10, 2)),
    ((11,), (12,), (13, 14, 15, 16, 2)),
    ((20, 21, 22, 23, 24, 25), (5, 2), (5, 2)),
]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return load_causal_lm(tiny_model, torch.float32, request.param)


def plain(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    logps = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logps[rows, ids[0, len(prompt) :]].sum()


def test_equal_to_one_sequence_at_a_time(model: Any) -> None:
    chosen, rejected = pair_logps(model, pack_pairs(TRIPLES, pad_id=0))
    for row, (p, c, r) in enumerate(TRIPLES):
        assert chosen[row].item() == pytest.approx(plain(model, p, c).item(), abs=2e-5)
        assert rejected[row].item() == pytest.approx(plain(model, p, r).item(), abs=2e-5)


def test_batch_composition_and_padding_leave_values_unchanged(model: Any) -> None:
    together = torch.stack(pair_logps(model, pack_pairs(TRIPLES, pad_id=0)))
    alone = torch.cat([torch.stack(pair_logps(model, pack_pairs([t], pad_id=0))) for t in TRIPLES], dim=1)
    reversed_ = torch.stack(pair_logps(model, pack_pairs(TRIPLES[::-1], pad_id=7))).flip(1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, reversed_, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_equal_to_a_padded_batch_of_the_plain_form(model: Any, side: str) -> None:
    # Six rows of a usual batch, padded on either side, under a usual attention mask.
    rows = [(p, completion) for p, c, r in TRIPLES for completion in (c, r)]
    length = max(len(p) + len(c) for p, c in rows)
    ids, mask = torch.full((len(rows), length), 7), torch.zeros(len(rows), length, dtype=torch.long)
    scored = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (p, c) in enumerate(rows):
        start = length - len(p) - len(c) if side == "left" else 0
        end = start + len(p) + len(c)
        ids[row, start:end], mask[row, start:end] = torch.tensor([*p, *c]), 1
        scored[row, end - len(c) : end] = True
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
    taken = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    expected = taken.masked_fill(~scored[:, 1:], 0).sum(1)
    got = torch.stack(pair_logps(model, pack_pairs(TRIPLES, pad_id=0)), dim=1).reshape(-1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


token = st.integers(3, 250)
triple = st.tuples(*(st.lists(token, min_size=1, max_size=n).map(tuple) for n in (6, 9, 9)))


@settings(max_examples=20, deadline=None)
@given(st.lists(triple, min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 250))
def test_company_leaves_values_unchanged(model: Any, company: list[Triple], place: int, pad_id: int) -> None:
    # Any other pairs in the batch, any row, any padding that follows from them, and whatever token fills it.
    place = min(place, len(company))
    batch = [*company[:place], TRIPLES[0], *company[place:]]
    with torch.no_grad():
        alone = torch.stack(pair_logps(model, pack_pairs([TRIPLES[0]], pad_id=0)))[:, 0]
        together = torch.stack(pair_logps(model, pack_pairs(batch, pad_id=pad_id)))[:, place]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_swapping_the_sides_swaps_the_values(model: Any) -> None:
    # The second completion must not see the first one, nor be shifted by it.
    chosen, rejected = pair_logps(model, pack_pairs(TRIPLES, pad_id=0))
    swapped = [(p, r, c) for p, c, r in TRIPLES]
    again = pair_logps(model, pack_pairs(swapped, pad_id=0))
    torch.testing.assert_close(chosen, again[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(rejected, again[0], atol=1e-5, rtol=0)


def test_gradients_equal_the_plain_form(tiny_model: Path) -> None:
    model = load_causal_lm(tiny_model, torch.float32, "eager")
    chosen, rejected = pair_logps(model, pack_pairs(TRIPLES, pad_id=0), head_chunk=3)
    (chosen * torch.tensor([1.0, -2.0, 0.5]) - rejected).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    weights = [1.0, -2.0, 0.5]
    loss = sum(w * plain(model, p, c) - plain(model, p, r) for w, (p, c, r) in zip(weights, TRIPLES, strict=True))
    loss.backward()  # type: ignore[union-attr]
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=2e-4, rtol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**16))
def test_chunks_do_not_change_values_or_gradients(rows: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 4, generator=generator, requires_grad=True)
    head = torch.nn.Linear(4, 11, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(11, 4, generator=generator))
    targets = torch.randint(0, 11, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator)
    ours = token_logps(hidden, head, targets, chunk)
    expected = torch.log_softmax(head(hidden), -1)[torch.arange(rows), targets]
    torch.testing.assert_close(ours, expected)
    got = torch.autograd.grad((ours * weights).sum(), [hidden, head.weight])
    want = torch.autograd.grad((expected * weights).sum(), [hidden, head.weight])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_head_with_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="bias"):
        token_logps(torch.zeros(1, 2), torch.nn.Linear(2, 3), torch.tensor([0]))


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A stand-in for Liger 0.8.2 with its signature; collects the options that it is called with."""
    calls: list[dict[str, Any]] = []

    def fused(input: Any, weight: Any, target: Any, **options: Any) -> torch.Tensor:
        calls.append(options)
        return torch.nn.functional.cross_entropy(input @ weight.T, target, reduction=options["reduction"])

    functional = ModuleType("liger_kernel.transformers.functional")
    functional.liger_fused_linear_cross_entropy = fused  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.2")
    _liger_cross_entropy.cache_clear()
    yield calls
    _liger_cross_entropy.cache_clear()


def test_liger_computes_on_cuda_where_it_is_installed(liger: list[dict[str, Any]]) -> None:
    hidden, head, targets = torch.randn(5, 4), torch.nn.Linear(4, 11, bias=False), torch.arange(5)
    ours = token_logps(hidden, head, targets)
    assert liger == []
    fused = token_logps(hidden.as_subclass(OnCuda), head, targets)
    assert liger == [{"reduction": "none", "accum_dtype": torch.float32}]
    torch.testing.assert_close(fused.as_subclass(torch.Tensor), ours)


def test_a_liger_with_wrong_gradients_is_left_alone(
    liger: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.1")
    assert _liger_cross_entropy() is None


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("liger_kernel") is None, reason="needs CUDA and Liger")
def test_the_real_liger_equals_our_own_form() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(33, 64, generator=generator).cuda().requires_grad_()
    head = torch.nn.Linear(64, 999, bias=False).cuda()
    targets = torch.randint(999, (33,), generator=generator).cuda()
    weights = torch.randn(33, generator=generator).cuda()
    results = []
    for chunk in (None, 8):
        logps = token_logps(hidden, head, targets, chunk)
        results.append((logps, *torch.autograd.grad((logps * weights).sum(), [hidden, head.weight])))
    for fused, ours in zip(*results, strict=True):
        torch.testing.assert_close(fused, ours, atol=1e-4, rtol=1e-3)


def test_mask_by_hand() -> None:
    # prompt, chosen, rejected, padding: one token each
    mask = pair_mask(torch.tensor([[PROMPT, CHOSEN, REJECTED, 0]]))[0, 0]
    # The padded query sees the prompt, so that no row of the softmax is empty.
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]]


def test_positions_restart_after_the_prompt() -> None:
    packed = pack_pairs([((5, 6), (7, 8), (9,))], pad_id=0)
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.segments.tolist() == [[1, 1, 2, 2, 3]]


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="pair 1 has an empty prompt"):
        pack_pairs([((1,), (2,), (3,)), ((), (2,), (3,))], pad_id=0)


def test_probabilities_of_all_sequences_sum_to_one(model: Any) -> None:
    # Every completion of up to two tokens that ends in 2 or is cut there: a partition of all continuations.
    prompt, vocabulary = (5, 6), model.config.vocab_size
    endings = [(2,), *((first, second) for first in range(0, vocabulary, 1) if first != 2 for second in (2,))]
    chosen, _ = pair_logps(model, pack_pairs([(prompt, e, (2,)) for e in endings], pad_id=0))
    ended = chosen.exp().sum().item()
    first = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1).exp()
    second = torch.stack(
        [
            torch.log_softmax(model(torch.tensor([[*prompt, f]])).logits[0, -1].float(), -1).exp()[2]
            for f in range(vocabulary)
        ]
    )
    expected = first[2] + sum(first[f] * second[f] for f in range(vocabulary) if f != 2)
    assert ended == pytest.approx(expected.item(), abs=1e-5)


def test_sequence_logps_is_the_plain_form(model: Any) -> None:
    ids = (5, 6, 7, 8, 2)
    got = sequence_logps(model, ids)
    assert len(got) == 4
    assert sum(got) == pytest.approx(plain(model, ids[:1], ids[1:]).item(), abs=2e-5)
