"""Success from a frozen image backbone and small trained heads: seconds of training on tens of demonstrations."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.success.calibration import choose_threshold, fit_temperature, sigmoid
from rewards.success.errors import SuccessError
from rewards.success.features import Backbone, build_features, grid_maps
from rewards.success.frames import Integers, LabelledFrames, episode_folds
from rewards.success.head import Head, HeadConfig, Views, head_logits, train_head
from rewards.success.model import Probabilities, images_of, write_folder
from rollouts.envs.types import IMAGE, STATE, Observation, Task

HEADS_FILE = "heads.safetensors"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """``backbone``: see :func:`rewards.success.features.build_features`; ``blocks`` of it, averaged to at most ``grid``
    cells on a side. ``state_dimensions`` of the robot's state go to the head beside them (none: images alone).

    ``views`` copies of each training frame, the first as it is and the others moved by up to ``shift`` pixels, have
    their features computed once. ``folds`` heads are trained for each task, each without one part of the episodes: they
    vote, and what each says of the episodes it has not seen sets temperature and threshold. The threshold is the
    lowest, from ``least_threshold`` up, that keeps the false positives among those within ``max_false_positive_rate``
    of the frames: false positives end episodes, and hurt more than misses.
    """

    backbone: Backbone = "auto"
    blocks: int = 5
    grid: int = 11
    state_dimensions: tuple[int, ...] = ()
    views: int = 4
    shift: int = 3
    folds: int = 5
    max_false_positive_rate: float = 0.005
    least_threshold: float = 0.5
    head: HeadConfig = field(default_factory=HeadConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grid < 1 or self.views < 1 or self.shift < 0 or self.folds < 2:
            raise ValueError("grid and views must be at least 1, shift at least 0 and folds at least 2")
        if not 0 <= self.max_false_positive_rate < 1:
            raise ValueError(
                f"max_false_positive_rate must be at least 0 and below 1, got {self.max_false_positive_rate}"
            )


@dataclass(frozen=True, slots=True)
class _Judge:
    """What is known of one task."""

    heads: tuple[Head, ...]
    temperature: float
    threshold: float


class BackboneModel:
    """Implements :class:`rewards.success.model.SuccessModel` on a CPU: 1 to 4 ms a frame of 84 by 84 pixels."""

    def __init__(self, config: BackboneConfig | None = None) -> None:
        self.config = config or BackboneConfig()
        self._features = build_features(self.config.backbone, self.config.blocks)
        self._judges: dict[str, _Judge] = {}

    def probabilities(self, observations: Observation, task: Task) -> Probabilities:
        """See :class:`rewards.success.model.SuccessModel`."""
        judge = self._judge(task)
        images = images_of(observations, IMAGE)
        maps = grid_maps(self._features, images, self.config.grid)[:, None]
        seen = Views(maps.astype(np.float16), self._states(observations.get(STATE), len(images)))
        logits = np.stack([head_logits(head, seen) for head in judge.heads]).astype(np.float64)
        return sigmoid(logits.mean(0) / judge.temperature).astype(np.float32)

    def threshold(self, task: Task) -> float:
        """See :class:`rewards.success.model.SuccessModel`."""
        return self._judge(task).threshold

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        """See :class:`rewards.success.model.SuccessModel`; rates are those of held-out episodes at the threshold."""
        if self.config.state_dimensions and frames.states is None:
            raise SuccessError("state_dimensions are set but an episode has no states; record them or leave them out")
        views = self._views(frames)
        judges: dict[str, _Judge] = {}
        metrics: dict[str, float] = {}
        for index, task in enumerate(frames.tasks):
            examples = frames.of(index)
            if frames.done[examples].any():
                judges[task.name], found = self._fit_task(frames, examples, views, index)
                metrics |= {f"fit/{task.name}/{name}": value for name, value in found.items()}
        if not judges:
            raise SuccessError("no episode shows any task done; give demonstrations")
        self._judges = judges
        return metrics

    def save(self, folder: Path) -> None:
        """See :class:`rewards.success.model.SuccessModel`."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}/{place}/{key}": tensor.contiguous()
            for name, judge in self._judges.items()
            for place, head in enumerate(judge.heads)
            for key, tensor in head.state_dict().items()
        }
        write_folder(folder, "backbone", self.describe(), lambda made: save_file(tensors, made / HEADS_FILE))

    @classmethod
    def load(cls, folder: Path, about: Mapping[str, Any]) -> "BackboneModel":
        """What :meth:`save` wrote; ``about`` is the model's description.

        Raises :class:`SuccessError` where the features are not those that the heads were trained on, or another version
        has saved them.
        """
        from safetensors.torch import load_file

        settings = dict(about["config"])
        try:
            settings["head"] = HeadConfig(**settings["head"])
            settings["state_dimensions"] = tuple(settings["state_dimensions"])
            model = cls(BackboneConfig(**settings))
        except (TypeError, KeyError) as error:
            raise SuccessError(f"{folder}: was saved by another version of Polestar; fit it again") from error
        if model._features.name != about["features"]:
            raise SuccessError(f"{folder}: its heads were trained on {about['features']}, and here there is "
                               f"{model._features.name}; install the same backbone or fit again")  # fmt: skip
        tensors = load_file(folder / HEADS_FILE)
        for name, task in about["tasks"].items():
            heads = []
            for place in range(task["heads"]):
                start = f"{name}/{place}/"
                state = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                head = Head(len(state["mean"]), len(state["state_mean"]), model.config.head)
                head.load_state_dict(state)
                heads.append(head.eval().requires_grad_(False))
            model._judges[name] = _Judge(tuple(heads), task["temperature"], task["threshold"])
        return model

    def describe(self) -> dict[str, Any]:
        """See :class:`rewards.success.model.SuccessModel`."""
        tasks = {
            name: {"heads": len(judge.heads), "temperature": judge.temperature, "threshold": judge.threshold}
            for name, judge in self._judges.items()
        }
        return {"features": self._features.name, "config": asdict(self.config), "tasks": tasks}

    def _judge(self, task: Task) -> _Judge:
        if task.name not in self._judges:
            known = ", ".join(sorted(self._judges)) or "none yet"
            raise SuccessError(f"task '{task.name}' was not among those fitted ({known}); fit it with demonstrations")
        return self._judges[task.name]

    def _views(self, frames: LabelledFrames) -> Views:
        """Every frame of ``frames``; the first view is the frame as it is."""
        config = self.config
        rng = np.random.default_rng([config.seed, 5])
        made = []
        for view in range(config.views if config.shift else 1):
            shifts = rng.integers(-config.shift, config.shift + 1, (len(frames.images), 2)) if view else None
            made.append(grid_maps(self._features, frames.images, config.grid, shifts).astype(np.float16))
        return Views(np.stack(made, axis=1), self._states(frames.states, len(frames.images)))

    def _states(self, states: NDArray[Any] | None, count: int) -> Floats:
        """The wanted dimensions [N, S]."""
        dimensions = self.config.state_dimensions
        if not dimensions:
            return np.zeros((count, 0), np.float32)
        if states is None:
            raise SuccessError(
                f"this model reads state dimensions {list(dimensions)}; give observations with '{STATE}'"
            )
        if states.shape[-1] <= max(dimensions):
            raise SuccessError(f"states have {states.shape[-1]} dimensions, and state_dimensions asks for "
                               f"{max(dimensions)}; numbers start at 0")  # fmt: skip
        chosen: Floats = states[:, list(dimensions)].astype(np.float32)
        return chosen

    def _fit_task(
        self, frames: LabelledFrames, examples: Integers, views: Views, index: int
    ) -> tuple[_Judge, dict[str, float]]:
        config = self.config
        fold = episode_folds(frames, examples, config.folds, config.seed)
        rows, done = views[frames.frame[examples]], frames.done[examples]
        heads = []
        held_out = np.zeros(len(examples), np.float32)
        for part in range(int(fold.max()) + 1):
            seed = int(np.random.default_rng([config.seed, index, part]).integers(2**31))
            heads.append(train_head(rows[fold != part], done[fold != part], config.head, seed))
            held_out[fold == part] = head_logits(heads[-1], rows[fold == part])
        temperature = fit_temperature(held_out, done)
        probabilities = sigmoid(held_out.astype(np.float64) / temperature)
        threshold = choose_threshold(probabilities, done, config.max_false_positive_rate, config.least_threshold)
        called = probabilities >= threshold
        found = {
            "threshold": threshold,
            "temperature": temperature,
            "false_positive_rate": float(called[~done].mean()),
            "false_negative_rate": float((~called[done]).mean()),
            "done": float(done.sum()),
            "undone": float((~done).sum()),
        }
        return _Judge(tuple(heads), temperature, threshold), found
