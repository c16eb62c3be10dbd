"""How validation loss falls with model size and compute: trainings of several sizes, and the laws through them.

After arXiv 2507.05197, section 4.5 and figure 4, at whatever scale there is: sizes are a backbone's first layers, and
all of them learn from the same pairs in the same order.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.checkpoint import write_atomically
from align.errors import UserError
from align.polar.config import PolarTraining
from align.polar.power_law import PowerLaw, fit_power_law, frontier
from align.polar.scaling_plot import plot_scaling
from align.polar.train import PolarOutcome, train
from align.tracking.jsonl import JsonlSink
from align.tracking.tracker import RunTracker
from rewards.polar.model import Dtype, build_polar
from rewards.polar.types import Triple

SCALING_FILE, PICTURE_FILE = "scaling.json", "scaling.png"


@dataclass(frozen=True, slots=True)
class SizeResult:
    """One size: its final validation loss, and ``curve``: FLOPs and loss at every validation after the first update."""

    layers: int
    parameters: int
    non_embedding_parameters: int
    tokens: int
    flops: float
    loss: float
    accuracy: float
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Scaling:
    """All sizes and the laws through them.

    ``by_parameters`` and ``by_non_embedding`` are through the final losses of the sizes; ``by_compute`` through the
    best loss for each budget over all curves. A law is None where it has fewer than two points.
    """

    sizes: tuple[SizeResult, ...]
    by_parameters: PowerLaw | None
    by_non_embedding: PowerLaw | None
    by_compute: PowerLaw | None
    folder: Path

    @property
    def picture(self) -> Path:
        """Both panels."""
        return self.folder / PICTURE_FILE


def training_flops(non_embedding_parameters: int, tokens: int, *, frozen: bool = False) -> float:
    """``6 N D``: two operations a parameter and token forward, four backward (arXiv 2001.08361, section 2.1).

    Embeddings are looked up and count nothing, nor do attention's products, which are small while a sequence is short
    beside the width. ``frozen`` weights beside an adapter have no gradient of their own: ``4 N D``.
    """
    return (4.0 if frozen else 6.0) * non_embedding_parameters * tokens


def run_scaling(
    sizes: Sequence[int],
    backbone: Path,
    triples: Sequence[Triple],
    validation: Sequence[Triple],
    config: PolarTraining,
    folder: Path,
    *,
    dtype: Dtype | None = None,
    make_tracker: Callable[[int, int], Any] | None = None,
    show: Callable[[Path], None] | None = None,
) -> Scaling:
    """Trains the first ``layers`` of ``backbone``, for each of ``sizes``, on the same pairs; draws and fits the losses.

    Every size has a folder ``layers-NN`` in ``folder``; one that has a ``result.json`` is not trained again, and one
    that was killed goes on from its last checkpoint. The starting weights and checkpoints of a finished size are
    deleted. ``make_tracker(layers, updates)`` gives each training its tracker, by default one that writes
    ``metrics.jsonl`` there; ``dtype`` is that of the starting weights. ``show`` is given the picture after every size
    from the second on. Raises what :func:`align.polar.train.train` and :func:`rewards.polar.model.build_polar` raise.
    """
    if len(set(sizes)) != len(sizes) or len(sizes) < 2:
        raise UserError("a scaling run needs two different sizes at least")
    done: list[SizeResult] = []
    for layers in sorted(sizes):
        path = folder / f"layers-{layers:02d}"
        start = path / "start"
        # A finished run is asked for by its own settings too: they are compared with the folder's.
        if not start.exists():
            build_polar(backbone, start, layers=layers, seed=config.seed, dtype=dtype)
        outcome = train(
            config,
            start,
            triples,
            validation,
            path,
            make_tracker=_tracker(layers, path, make_tracker),
        )
        done.append(_result(layers, outcome, frozen=config.lora is not None))
        for left in (start, path / "checkpoints"):
            shutil.rmtree(left, ignore_errors=True)
        if len(done) > 1:
            found = summarise(done, folder)
            if show:
                show(found.picture)
    return found


def summarise(sizes: Sequence[SizeResult], folder: Path) -> Scaling:
    """Fits the laws, and writes ``scaling.json`` and ``scaling.png`` to ``folder``."""
    losses = [size.loss for size in sizes]
    best = frontier([point for size in sizes for point in size.curve])
    scaling = Scaling(
        sizes=tuple(sizes),
        by_parameters=_fit([size.parameters for size in sizes], losses),
        by_non_embedding=_fit([size.non_embedding_parameters for size in sizes], losses),
        by_compute=_fit([flops for flops, _ in best], [loss for _, loss in best]),
        folder=folder,
    )
    plain = asdict(scaling) | {"frontier": best}
    del plain["folder"]
    write_atomically(folder / SCALING_FILE, json.dumps(_without_infinities(plain), indent=2) + "\n")
    plot_scaling(scaling, scaling.picture)
    return scaling


def _tracker(layers: int, path: Path, make: Callable[[int, int], Any] | None) -> Callable[[int], Any]:
    return lambda updates: make(layers, updates) if make else RunTracker([JsonlSink(path)])


def _result(layers: int, outcome: PolarOutcome, frozen: bool) -> SizeResult:
    def flops(tokens: int) -> float:
        return training_flops(outcome.non_embedding_parameters, tokens, frozen=frozen)

    last = outcome.validations[-1]
    return SizeResult(
        layers=layers,
        parameters=outcome.parameters,
        non_embedding_parameters=outcome.non_embedding_parameters,
        tokens=outcome.tokens,
        flops=flops(outcome.tokens),
        loss=last.loss,
        accuracy=last.accuracy,
        curve=tuple((flops(v.tokens), v.loss) for v in outcome.validations if v.tokens),
    )


def _fit(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    return fit_power_law(x, y) if len(set(x)) > 1 else None


def _without_infinities(value: Any) -> Any:
    """JSON has no infinity: an interval without ends is two nulls."""
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
