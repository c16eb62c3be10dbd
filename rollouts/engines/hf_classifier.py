"""The transformers classifier: slower than vLLM, and runs wherever PyTorch does."""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from rollouts.engines.base import EngineError
from rollouts.engines.classifier import Logit
from rollouts.engines.probe import Life, check_sequences, check_tokens, one_line
from rollouts.engines.scalar_head import read_head
from rollouts.engines.sharing import Group, Tokens, distinct, share_prefixes
from rollouts.models import load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_SHARED: Final = 16  # tokens of a prefix worth a pass of its own
Item = TypeVar("Item")


class HFClassifier:
    """:class:`rollouts.engines.classifier.Classifier` on a transformers ``*ForSequenceClassification`` model.

    ``model_path`` is a folder in Hugging Face format, ``max_context`` in tokens, below the model's own limit.
    ``batch_tokens`` bounds the tokens of a batch, padding and shared prefixes included; a single longer sequence is
    computed nevertheless. The head is read in float32, whatever the ``dtype`` of the backbone, at the last token of a
    sequence, also where that is the padding token. Equal sequences of a call are computed once.

    With ``prefix_reuse`` sequences that begin alike are computed as a group: the common prefix once, then the rests as
    rows that attend to its keys and values. (In one row with a mask between the rests, their attention to each other
    would be computed too, only to be masked: half the gain at a thousand tokens.) Where a token's hidden state is not
    that of full attention over what stands before it (sliding windows, recurrent states) nothing is shared.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        max_context: int,
        dtype: str = "float32",
        batch_tokens: int = 8192,
        prefix_reuse: bool = True,
        device: str = "cpu",
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
        self._folder = Path(model_path)
        self._dtype = getattr(torch, dtype)
        self._max_context = max_context
        self._batch_tokens = batch_tokens
        self._prefix_reuse = prefix_reuse
        self._device = torch.device(device)
        self._life = Life()
        self._model: PreTrainedModel | None = None
        self._head: Tensor | None = None
        self._build()

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Logit]:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._life.require_alive()
        check_sequences([len(sequence) for sequence in sequences], self._max_context)
        check_tokens(sequences, self._net().config.get_text_config().vocab_size)
        try:
            return self._logits(sequences)
        except Exception as error:
            self._life.kill(f"scoring failed: {one_line(error)}")
            raise EngineError(f"transformers failed: {one_line(error)}; the engine must be rebuilt") from error

    def max_context(self) -> int:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        return self._max_context

    def rebuild(self) -> None:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._model = self._head = None
        self._build()
        self._life.revive()

    def close(self) -> None:
        """See :class:`rollouts.engines.classifier.Classifier`."""
        self._model = self._head = None
        self._life.kill("it was closed")

    def _build(self) -> None:
        self._head = read_head(self._folder).to(self._device)
        model = load_classifier(self._folder, self._dtype)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", self._max_context)
        if self._max_context > limit:
            raise EngineError(f"max_context {self._max_context} exceeds the {limit} positions of '{self._folder}'")
        model.requires_grad_(False)
        self._model = model.to(self._device)  # type: ignore[arg-type]

    def _net(self) -> Any:
        if self._model is None:
            raise EngineError("the classifier was closed; build a new one")
        return self._model

    @torch.no_grad()
    def _logits(self, sequences: Sequence[Sequence[int]]) -> list[Logit]:
        different = distinct(sequences)
        ordered = different.sequences
        shares = self._prefix_reuse and attends_fully(self._net())
        groups = share_prefixes(ordered, LEAST_SHARED if shares else self._max_context)
        values, cached = [0.0] * len(ordered), [0] * len(ordered)
        alone = [group.start for group in groups if not group.prefix]
        for batch in _batches(alone, lambda slot: (len(ordered[slot]), 1), self._batch_tokens):
            for slot, value in zip(batch, self._rows([ordered[slot] for slot in batch]), strict=True):
                values[slot] = value

        def size(group: Group) -> tuple[int, int]:
            return max(len(s) for s in ordered[group.start : group.stop]), group.stop - group.start

        for groups_of_batch in _batches([group for group in groups if group.prefix], size, self._batch_tokens):
            for slot, value in self._grouped(ordered, groups_of_batch):
                values[slot] = value
        for group in groups:
            members = range(group.start, group.stop)
            payer = min(members, key=lambda slot: different.first[slot])
            for slot in members:
                cached[slot] = 0 if slot == payer else group.prefix
        return different.answers(values, cached)

    def _rows(self, sequences: Sequence[Tokens]) -> list[float]:
        """The logit of every sequence, each a row padded on the right."""
        ids, mask = self._pad(sequences)
        hidden = self._backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self._read(hidden, mask)

    def _grouped(self, ordered: Sequence[Tokens], groups: Sequence[Group]) -> Iterator[tuple[int, float]]:
        """(place, logit) of every sequence of the groups: a row for each prefix, then a row for each rest."""
        ids, prefix_mask = self._pad([ordered[group.start][: group.prefix] for group in groups])
        prefixes = self._backbone(input_ids=ids, attention_mask=prefix_mask, use_cache=True).past_key_values
        rests = [(row, slot, ordered[slot][group.prefix :]) for row, group in enumerate(groups)
                 for slot in range(group.start, group.stop)]  # fmt: skip
        width = ids.shape[1]
        for batch in _batches(rests, lambda rest: (width + len(rest[2]), 1), self._batch_tokens):
            rows = torch.tensor([row for row, _, _ in batch], device=self._device)
            ids, mask = self._pad([tokens for _, _, tokens in batch])
            before = prefix_mask[rows]
            hidden = self._backbone(
                input_ids=ids,
                attention_mask=torch.cat((before, mask), dim=1),
                position_ids=before.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=self._device),
                past_key_values=_select(prefixes, rows),
                use_cache=True,
            ).last_hidden_state
            yield from zip([slot for _, slot, _ in batch], self._read(hidden, mask), strict=True)

    @property
    def _backbone(self) -> Any:
        return getattr(self._net(), self._net().base_model_prefix)

    def _read(self, hidden: Tensor, mask: Tensor) -> list[float]:
        """The head at the last token of each row of ``hidden`` [B, L, H]."""
        assert self._head is not None
        last = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        logits: list[float] = (last.float() @ self._head.T)[:, 0].tolist()
        return logits

    def _pad(self, sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask [B, L], padded with token 0 on the right."""
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        return ids.to(self._device), mask.to(self._device)


def attends_fully(model: Any) -> bool:
    """Whether keys and values of a prefix are all that later tokens need of it, and do not depend on what follows.

    Not so with sliding windows and recurrent states, nor where rotary frequencies change with the length (LongRoPE).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config.get_text_config()
    takes_positions = "position_ids" in signature(getattr(model, model.base_model_prefix).forward).parameters
    keeps_all = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    return takes_positions and keeps_all and "longrope" not in str(getattr(config, "rope_parameters", None))


def _select(cache: Any, rows: Tensor) -> Any:
    """A new cache whose row i is row ``rows[i]`` of ``cache``."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache((layer.keys[rows], layer.values[rows]) for layer in cache.layers)


def _batches(items: Sequence[Item], size: Callable[[Item], tuple[int, int]], batch_tokens: int) -> Iterator[list[Item]]:
    """Items from long to short, as many at a time as pad to ``batch_tokens``; ``size`` gives (tokens a row, rows)."""
    batch: list[Item] = []
    longest = rows = 0
    for item in sorted(items, key=lambda item: -size(item)[0]):
        length, more = size(item)
        if batch and (rows + more) * longest > batch_tokens:
            yield batch
            batch, rows = [], 0
        longest = longest if batch else length
        batch.append(item)
        rows += more
    if batch:
        yield batch
