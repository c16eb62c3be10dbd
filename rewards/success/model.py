"""What every success model answers, and the folders that they are kept in."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rewards.success.errors import SuccessError
from rewards.success.frames import LabelledFrames
from rollouts.envs.types import Observation, Task

SUCCESS_FILE = "success.json"
Probabilities = NDArray[np.float32]


class SuccessModel(Protocol):
    """Tells from a camera image, and the robot's own state where it is given, whether a task is done."""

    def probabilities(self, observations: Observation, task: Task) -> Probabilities:
        """[N], of ``observations`` with a first axis N: ``image`` uint8 [N, H, W, 3], and ``state`` where it is used.

        Raises :class:`SuccessError` for a task that the model was not fitted to, where it must be.
        """
        ...

    def threshold(self, task: Task) -> float:
        """The probability from which on the model itself calls ``task`` done."""
        ...

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        """Learns from examples, forgetting earlier ones; returns what held-out episodes say (``fit/…``)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the model to ``folder``, whole or not at all; :func:`rewards.success.load.load_model` reads it."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Plain values that say which model this is: kind, settings, thresholds."""
        ...


def compute_reward(model: SuccessModel, observations: Observation, task: Task) -> NDArray[np.float32]:
    """0 where the model calls ``task`` done and -1 elsewhere, [N]; named as in LeRobot's and RLinf's reward models."""
    done = model.probabilities(observations, task) >= model.threshold(task)
    return np.where(done, 0.0, -1.0).astype(np.float32)


def images_of(observations: Observation, key: str = "image") -> NDArray[np.uint8]:
    """The images [N, H, W, 3] of batched observations; :class:`SuccessError` where they are no such thing."""
    if key not in observations:
        raise SuccessError(f"the observations have no '{key}'; turn image observations on")
    images: NDArray[np.uint8] = observations[key]
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise SuccessError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    return images


def write_folder(folder: Path, kind: str, about: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """``folder`` with ``success.json`` (``about`` and the ``kind`` of model) and what ``write`` puts beside it.

    It is written beside and renamed: the old folder goes when the new one is whole. Raises :class:`SuccessError`.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            made = scratch / "new"
            made.mkdir()
            write(made)
            (made / SUCCESS_FILE).write_text(json.dumps({"kind": kind, **about}, indent=1) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(scratch / "old")
            made.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise SuccessError(f"{folder}: cannot be written: {error.strerror or error}") from error


def read_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """The kind of model in ``folder``, and what :func:`write_folder` was told about it."""
    try:
        about: dict[str, Any] = json.loads((folder / SUCCESS_FILE).read_text(encoding="utf-8"))
        return str(about.pop("kind")), about
    except FileNotFoundError as error:
        raise SuccessError(f"{folder}: no {SUCCESS_FILE} there; give a folder that a success model saved") from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise SuccessError(f"{folder / SUCCESS_FILE}: cannot be read; save the model again") from error
