"""Log-probabilities of completions without the [B, L, V] tensor, and with the prompt computed once a pair.

Two savings over the plain form, both exact: the language-model head runs on completion positions only, in chunks, and
the chosen and the rejected completion of a pair share one row, ``prompt | chosen | rejected``, under an attention mask
that keeps the rejected completion from seeing the chosen one.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

from align.types import PackedPairs

PROMPT, CHOSEN, REJECTED = 1, 2, 3

HEAD_CHUNK_BYTES = 48 * 2**20
"""Float32 logits held at a time: about what the caches of a server processor hold."""

LIGER_SINCE = Version("0.8.2")
"""Before it, Liger's gradients for one loss a token were wrong without a word: its pull request 1298 mended them."""


def pack_pairs(triples: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], pad_id: int) -> PackedPairs:
    """Packs (prompt, chosen, rejected) token sequences into rows padded on the right to the longest, [B, L].

    Raises ``ValueError`` when a prompt is empty: the first token of a completion needs something before it.
    """
    length = max(len(p) + len(c) + len(r) for p, c, r in triples)
    ids = torch.full((len(triples), length), pad_id, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segments = torch.zeros_like(ids)
    for row, (prompt, chosen, rejected) in enumerate(triples):
        if not prompt:
            raise ValueError(f"pair {row} has an empty prompt")
        p, c, r = len(prompt), len(chosen), len(rejected)
        end = p + c + r
        ids[row, :end] = torch.tensor([*prompt, *chosen, *rejected])
        positions[row, : p + c] = torch.arange(p + c)
        positions[row, p + c : end] = torch.arange(p, p + r)
        segments[row, :p], segments[row, p : p + c], segments[row, p + c : end] = PROMPT, CHOSEN, REJECTED
    return PackedPairs(ids, positions, segments)


def pair_mask(segments: Tensor) -> Tensor:
    """Which key each query may attend to, bool [B, 1, L, L]: causal, and never from the rejected to the chosen."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    # Padded queries see the prompt too, so that no row of the softmax is empty: some kernels would make it NaN.
    return (causal & (key != 0) & ((query == key) | (key == PROMPT)))[:, None]


class _TokenLogps(torch.autograd.Function):
    """``log softmax(hidden @ weight.T)`` at the targets, a chunk of rows at a time in both directions.

    Autograd's own form of the same keeps and streams several [N, V] float32 arrays; this one holds one chunk, and
    computes its logits again in the backward pass, which costs a fifteenth of the step and saves a quarter.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        logps, norms = [], []
        for h, t in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            logits = (h @ weight.T).float()
            norm = logits.logsumexp(-1)
            logps.append(logits.gather(-1, t[:, None])[:, 0] - norm)
            norms.append(norm)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(norms))
        ctx.chunk = chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets, norms = ctx.saved_tensors
        (grad,) = grads
        wants_weight = ctx.needs_input_grad[1]
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        d_hidden = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            h, t, g = hidden[rows], targets[rows], grad[rows, None]
            d_logits = (h @ weight.T).float().sub_(norms[rows, None]).exp_().mul_(-g)
            d_logits.scatter_add_(1, t[:, None], g)
            narrow = d_logits.to(weight.dtype)
            d_hidden[rows] = narrow @ weight
            if d_weight is not None:
                d_weight += narrow.T @ h
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int | None = None) -> Tensor:
    """Log-probability in nats of ``targets`` [N] given the hidden states [N, H] that predict them, float32 [N].

    ``head`` is a linear layer without bias. Its logits exist for ``chunk`` rows at a time (default: as many as fit
    ``HEAD_CHUNK_BYTES`` in float32), never for all. On a CUDA device, without ``chunk``, Liger's fused kernel does the
    same where ``liger-kernel`` is installed.
    """
    if getattr(head, "bias", None) is not None:
        raise ValueError("a language-model head with a bias is not supported")
    weight = head.weight
    assert isinstance(weight, Tensor)
    fused = _liger_cross_entropy() if hidden.is_cuda and chunk is None else None
    if fused is not None:
        return -fused(hidden, weight, targets, reduction="none", accum_dtype=torch.float32)
    chunk = chunk or max(1, HEAD_CHUNK_BYTES // (4 * weight.shape[0]))
    logps: Tensor = _TokenLogps.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return logps


@cache
def _liger_cross_entropy() -> Callable[..., Tensor] | None:
    """Liger's head and cross-entropy in one, None where it is missing or too old."""
    try:
        if Version(importlib.metadata.version("liger-kernel")) < LIGER_SINCE:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    fused: Callable[..., Tensor] = importlib.import_module(
        "liger_kernel.transformers.functional"
    ).liger_fused_linear_cross_entropy
    return fused


def pair_logps(model: Any, batch: PackedPairs, head_chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities in nats of the chosen and of the rejected completions, float32 [B] and [B].

    ``model`` is a transformers causal language model with the ``eager`` or ``sdpa`` attention.
    """
    mask = pair_mask(batch.segments)
    dtype = next(model.parameters()).dtype
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    decoder = getattr(model, model.base_model_prefix)
    hidden = decoder(
        input_ids=batch.input_ids, attention_mask=bias, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    rows, columns = torch.nonzero(batch.segments >= CHOSEN, as_tuple=True)
    side = batch.segments[rows, columns]
    # A completion token is predicted by the token before it; for the first token of the rejected completion that is
    # the prompt's last token, not its left neighbour in the row (which is the chosen completion's end).
    before = columns - 1
    prompt_last = (batch.segments == PROMPT).sum(1) - 1
    first = batch.position_ids[rows, columns] == prompt_last[rows] + 1
    before = torch.where(first, prompt_last[rows], before)
    logps = token_logps(hidden[rows, before], model.get_output_embeddings(), batch.input_ids[rows, columns], head_chunk)
    zero = logps.new_zeros(batch.input_ids.shape[0])
    chosen = zero.index_add(0, rows, logps * (side == CHOSEN))
    rejected = zero.index_add(0, rows, logps * (side == REJECTED))
    return chosen, rejected


@torch.no_grad()
def sequence_logps(model: Any, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probability in nats of every token of one sequence from its second on."""
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    decoder = getattr(model, model.base_model_prefix)
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    return tuple(token_logps(hidden, model.get_output_embeddings(), ids[0, 1:]).tolist())
