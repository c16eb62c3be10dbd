"""Items scored by a policy discriminator: encoded in groups, computed by a classifier, one answer each."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rewards.polar.encoding import Encoded, PolarEncoder
from rewards.polar.probe import (
    DIFFERENT,
    IDENTICAL,
    REDUCED_TOLERANCE,
    TOLERANCE,
    Probe,
    check_raw,
    plain_readings,
)
from rewards.polar.types import PolarError, PolarItem, Rendered, Turns
from rewards.types import ScoreFailure
from rollouts.engines.classifier import Classifier

Backend = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What became of one item.

    ``score`` is the raw logit, unbounded. ``truncated`` says which of prompt, reference and output lost text to fit.
    ``tokens`` is the length it was encoded to, of which ``cached_tokens`` were shared with other items; both are 0
    where the item could not be encoded.
    """

    score: float | ScoreFailure
    truncated: frozenset[str]
    cached_tokens: int
    tokens: int


class PolarScorer:
    """Scores items, N in and N out, in order.

    Items of one call with the same prompt, reference and wrapper are a group: they are cut to the same prompt, and
    computed together. An item that cannot be encoded, that is too long for the classifier, or whose logit is not
    finite becomes a failure; the others are scored. An error of the engine
    (:class:`rollouts.engines.base.EngineError`) is raised for the whole call, and :meth:`rebuild` mends it.
    """

    def __init__(self, classifier: Classifier, encoder: PolarEncoder) -> None:
        self._classifier = classifier
        self._encoder = encoder

    def score_items(self, items: Sequence[PolarItem | Rendered]) -> list[ItemScore]:
        """One score or failure for each item; a :class:`Rendered` text is a group of its own."""
        encoded = [self._fitting(one) for one in self._encode(items)]
        logits = iter(self._classifier.logits([one.ids for one in encoded if isinstance(one, Encoded)]))
        scores = []
        for one in encoded:
            if isinstance(one, ScoreFailure):
                scores.append(ItemScore(one, frozenset(), 0, 0))
                continue
            logit = next(logits)
            finite = math.isfinite(logit.value)
            score = logit.value if finite else ScoreFailure(f"the model gave {logit.value}, not a finite number")
            scores.append(ItemScore(score, frozenset(one.truncated), logit.cached_tokens, len(one.ids)))
        return scores

    def probe(self, folder: Path, tolerance: float = TOLERANCE["float32"]) -> Probe:
        """Scores an answer beside itself and beside another, and compares with transformers in float32 on ``folder``.

        ``tolerance`` as in :data:`rewards.polar.probe.TOLERANCE`. Raises :class:`PolarError` where the classifier
        squashes, averages or computes something else. Needs the memory of the model in float32 while it runs.
        """
        sequences = [self._encoder.encode(i.prompt, i.reference, i.output, i.wrapper) for i in (IDENTICAL, DIFFERENT)]
        values = [logit.value for logit in self._classifier.logits(sequences)]
        gap = check_raw(values, plain_readings(folder, sequences), tolerance)
        return Probe(values[0], values[1], gap)

    def rebuild(self) -> None:
        """Starts the engine afresh from the same weights."""
        self._classifier.rebuild()

    def close(self) -> None:
        """Frees memory and processes; the scorer cannot be used afterwards."""
        self._classifier.close()

    def _encode(self, items: Sequence[PolarItem | Rendered]) -> list[Encoded | ScoreFailure]:
        groups: dict[Hashable, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(index if isinstance(item, Rendered) else _group(item), []).append(index)
        encoded: dict[int, Encoded | ScoreFailure] = {}
        for indices in groups.values():
            encoded.update(zip(indices, self._encode_group([items[index] for index in indices]), strict=True))
        return [encoded[index] for index in range(len(items))]

    def _encode_group(self, items: Sequence[PolarItem | Rendered]) -> list[Encoded | ScoreFailure]:
        """The items of one group; those that cannot be encoded even alone fail, and the others are encoded anew."""
        try:
            return list(self._encode_together(items))
        except PolarError as error:
            if len(items) == 1:
                return [ScoreFailure(str(error))]
            reason = str(error)
        alone = [self._encode_group([item])[0] for item in items]
        good = [item for item, one in zip(items, alone, strict=True) if isinstance(one, Encoded)]
        if len(good) == len(items):  # none is to blame by itself
            return [ScoreFailure(reason)] * len(items)
        again = iter(self._encode_group(good) if good else [])
        return [next(again) if isinstance(one, Encoded) else one for one in alone]

    def _encode_together(self, items: Sequence[PolarItem | Rendered]) -> list[Encoded]:
        first = items[0]
        if isinstance(first, Rendered):
            return [self._encoder.encode_rendered(first.text)]
        outputs = [item.output for item in items if isinstance(item, PolarItem)]
        return self._encoder.encode_group(first.prompt, first.reference, outputs, first.wrapper)

    def _fitting(self, one: Encoded | ScoreFailure) -> Encoded | ScoreFailure:
        limit = self._classifier.max_context()
        if isinstance(one, Encoded) and len(one.ids) > limit:
            return ScoreFailure(f"the item has {len(one.ids)} tokens, and the engine takes {limit}: raise max_context")
        return one


def open_scorer(
    folder: Path,
    *,
    backend: Backend = "vllm",
    max_context: int | None = None,
    max_response_length: int | None = None,
    dtype: str = "bfloat16",
    probe: bool = True,
    **options: Any,
) -> PolarScorer:
    """A scorer on the POLAR model in ``folder``.

    ``max_context`` (tokens; by default, and at most, the model's ``max_length``) and ``max_response_length`` (by
    default the model's) bound what is read; items are cut to fit. ``options`` are those of
    :class:`rollouts.engines.vllm_classifier.VLLMClassifier` or :class:`rollouts.engines.hf_classifier.HFClassifier`.
    With ``probe`` it is first compared with transformers (:meth:`PolarScorer.probe`). Raises :class:`PolarError` where
    the folder is no POLAR model or the probe fails, :class:`rollouts.engines.base.EngineError` where the engine cannot
    serve it.
    """
    from rewards.polar.model import load_encoder, polar_settings

    settings = polar_settings(folder)
    if max_response_length is not None:
        settings = replace(settings, max_response_length=max_response_length)
    if max_context is not None:
        settings = settings.fitted(max_context)
    classifier = _classifier(folder, backend, settings.max_length, dtype, options)
    scorer = PolarScorer(classifier, load_encoder(folder, settings))
    if probe:
        try:
            scorer.probe(folder, TOLERANCE.get(dtype, REDUCED_TOLERANCE))
        except BaseException:
            scorer.close()
            raise
    return scorer


def _classifier(folder: Path, backend: str, max_context: int, dtype: str, options: dict[str, Any]) -> Classifier:
    if backend == "vllm":
        from rollouts.engines.vllm_classifier import VLLMClassifier

        return VLLMClassifier(folder, max_context=max_context, dtype=dtype, **options)
    if backend == "transformers":
        from rollouts.engines.hf_classifier import HFClassifier

        return HFClassifier(folder, max_context=max_context, dtype=dtype, **options)
    raise PolarError(f"unknown backend '{backend}'; choose vllm or transformers")


def _group(item: PolarItem) -> Hashable:
    return _hashable(item.prompt), _hashable(item.reference), item.wrapper


def _hashable(turns: Turns) -> Hashable:
    return turns if isinstance(turns, str) else tuple(turns)
