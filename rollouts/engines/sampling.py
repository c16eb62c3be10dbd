"""Exact sampling with one uniform number per row, shared by the engines.

The usual trick of dividing probabilities by exponential noise draws one number per vocabulary entry and row; with
per-request generators on a CPU that alone takes longer than the model. Inverting the cumulative distribution takes one
number per row, and makes both engines draw the same token from the same logits and seed.
"""

import torch

_BLOCK = 128  # divides the vocabularies of the common model families, so that nothing is padded


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Token ids [B] drawn from softmax(``logits``) [B, V] by ``uniforms`` [B], float64 in [0, 1).

    A token of probability zero (logit -inf) is never drawn. Running sums are float64, so that rare tokens keep their
    probabilities; a float32 one over the vocabulary would round them away.
    """
    logits = logits.float()
    weights = torch.sub(logits, logits.amax(dim=-1, keepdim=True)).exp_()
    if excess := weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, _BLOCK - excess))
    blocks = weights.view(weights.shape[0], -1, _BLOCK)
    sums = blocks.sum(dim=-1).double()
    target = uniforms * sums.sum(dim=-1)
    block, before = _first_above(sums, target)
    chosen = blocks[torch.arange(blocks.shape[0], device=logits.device), block].double()
    inside, _ = _first_above(chosen, target - before)
    return block * _BLOCK + inside


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """``logits`` [B, V] with everything outside the ``top_k`` largest, then outside the ``top_p`` nucleus, at -inf."""
    rows = logits.shape[0]
    return filter_rows(
        logits,
        torch.full((rows,), top_k, device=logits.device) if top_k > 0 else None,
        torch.full((rows,), top_p, device=logits.device) if top_p < 1.0 else None,
    )


def filter_rows(logits: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None) -> torch.Tensor:
    """:func:`filter_logits` with a ``top_k`` (at least 1) and a ``top_p`` for each row [B]; None switches one off.

    Logits as large as the ``top_k``-th stay, however many they are. The nucleus is the smallest set of the most likely
    tokens whose mass reaches ``top_p``. Where ``top_k`` leaves few tokens only those are sorted: on a CPU sorting whole
    vocabularies takes several times as long as the model.
    """
    width = logits.shape[-1]
    if top_k is not None:
        top_k = top_k.long().clamp(max=width)
        threshold = logits.topk(int(top_k.max()), dim=-1).values.gather(-1, top_k.unsqueeze(-1) - 1)
        logits = logits.masked_fill(logits < threshold, float("-inf"))
        width = max(1, int(torch.isfinite(logits).sum(dim=-1).max()))
    if top_p is None:
        return logits
    ordered, order = logits.topk(width, dim=-1)
    mass = ordered.softmax(dim=-1, dtype=torch.float32)
    outside = mass.cumsum(dim=-1) - mass >= top_p.unsqueeze(-1)
    outside[:, 0] = False
    return torch.full_like(logits, float("-inf")).scatter(-1, order, ordered.masked_fill(outside, float("-inf")))


def _first_above(masses: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row, the first index whose running sum exceeds ``target``, and the running sum before it.

    ``target`` is held just under the row's total, so that rounding cannot run past the last index that has mass.
    """
    running = masses.cumsum(dim=-1)
    zero = torch.zeros_like(target)
    target = torch.maximum(torch.minimum(target, torch.nextafter(running[:, -1], zero)), zero)
    index = (running <= target.unsqueeze(-1)).sum(dim=-1)
    before = (running - masses).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return index, before
