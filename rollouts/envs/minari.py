"""Episodes out and in as a Minari dataset (Farama's format for offline reinforcement learning).

It stands here, and not beside the other formats, since Minari describes observations and actions by Gymnasium's spaces.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rollouts.envs.types import IMAGE, STATE, Episode, Source, Task
from rollouts.episodes.codec import Layout, metadata_text
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.images import is_image

ROOT = "MINARI_DATASETS_PATH"
SUCCESS, DETECTED = "success", "detected"


def export_minari(
    dataset_id: str,
    episodes: Iterable[Episode],
    *,
    root: Path | str | None = None,
    data_format: str = "hdf5",
    description: str = "Episodes of a robot, written by Polestar",
    algorithm_name: str = "Polestar",
) -> Path:
    """Writes ``episodes`` as the Minari dataset ``dataset_id`` (``NAMESPACE/NAME-v0``) and returns its folder.

    ``minari.load_dataset(dataset_id)`` reads it; ``root`` is where datasets are kept, by default what Minari's variable
    MINARI_DATASETS_PATH says, or ``~/.minari/datasets``. ``data_format`` is ``hdf5``, ``arrow`` or ``parquet``.

    Observations are a dictionary space, pictures are kept without loss. ``terminations`` and ``truncations`` are true
    in the last step where the episode's flags are. Success and detections are infos, of one more entry than there are
    actions, as Minari has it; id, task, instruction, source, policy version and metadata are the episode's metadata,
    from which :func:`import_minari` has the same episodes back. All are in memory at once, since Minari wants a list.

    Raises :class:`EpisodeError` where the dataset exists, the id is not one, or episodes do not fit together.
    """
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"{dataset_id!r} does not name a Minari dataset: write (NAMESPACE/)NAME-v0") from error
    folder = Path(root) if root is not None else _default_root()
    target = folder / dataset_id
    if target.exists() or target.is_symlink():
        raise EpisodeError(f"{target}: exists already; export under another name or version")
    buffers, facts, layout = [], [], None
    for number, episode in enumerate(episodes):
        layout = layout or Layout.of(episode)
        layout.check(episode)
        buffers.append(_buffer(number, episode))
        facts.append(_facts(episode))
    if layout is None:
        raise EpisodeError("no episodes to export")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".polestar-", dir=folder))
    except OSError as error:
        raise EpisodeError(f"{target}: cannot be written: {error.strerror or error}") from error
    try:
        with _root(scratch), warnings.catch_warnings():
            # Minari warns of an author and an environment that are not named; here there is neither.
            warnings.simplefilter("ignore", UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=_observation_space(layout),
                action_space=spaces.Box(-1.0, 1.0, (layout.action,), np.float32),
                algorithm_name=algorithm_name,
                description=description,
                data_format=data_format,
                jpeg_encoding=False,
            )
            dataset.storage.update_episode_metadata(facts)
        _move(scratch, folder, namespace, dataset_id)
    except (OSError, RuntimeError, ValueError) as error:
        raise EpisodeError(f"{dataset_id}: Minari cannot write it: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def import_minari(
    dataset: str | Path,
    *,
    root: Path | str | None = None,
    source: Source = Source.PRIOR,
    task: Task | None = None,
    success_key: str = SUCCESS,
) -> Iterator[Episode]:
    """The episodes of a Minari dataset: its id, looked up in ``root`` (as in :func:`export_minari`), or its folder.

    What :func:`export_minari` wrote comes back as it was. Datasets of others lack some of it, and then

    - an observation that is no dictionary is "image" when it is uint8 [H, W, 3], else "state"; numbers become float32;
      of a dictionary, the key "observation" (as in goal-conditioned environments) is "state", others keep their names;
    - ``success`` is the info ``success_key`` after each action, false where there is none;
    - ``task`` is given here, or is the dataset's id as name and as words; ``source`` is given here;
    - ``detected`` is NaN; the id is the dataset's and the episode's number; ``seed`` goes into the metadata.

    ``terminated`` and ``truncated`` are those of the last step, and neither is ever made up. Raises
    :class:`EpisodeError` where there is no such dataset, or its actions are not within [-1, 1].
    """
    import minari

    folder = (
        Path(dataset) if Path(dataset).is_dir() else (Path(root) if root is not None else _default_root()) / dataset
    )
    data = folder / "data"
    if not data.is_dir():
        raise EpisodeError(f"{folder}: no Minari dataset there; give its id and root, or its folder")
    try:
        found = minari.MinariDataset(data)
        facts = list(found.storage.get_episode_metadata(found.episode_indices))
    except (OSError, ValueError, KeyError) as error:
        raise EpisodeError(f"{folder}: Minari cannot read it: {' '.join(str(error).split())}") from error
    name = found.spec.dataset_id
    default = task or Task(name, name)
    return _episodes(found, facts, name, default, source, success_key)


def dataset_place(folder: Path | str) -> tuple[Path, str]:
    """``root`` and ``dataset_id`` for :func:`export_minari` to write to ``folder``.

    Where Minari keeps its datasets, the id is the whole path from there on, and elsewhere the folder's own name.
    """
    # Minari's own function would make the folder.
    root = Path(os.environ.get(ROOT) or Path.home() / ".minari" / "datasets").absolute()
    where = Path(folder).absolute()
    if where != root and where.is_relative_to(root):
        return root, where.relative_to(root).as_posix()
    return where.parent, where.name


def _episodes(
    dataset: Any, facts: list[Mapping[str, Any]], name: str, task: Task, source: Source, success_key: str
) -> Iterator[Episode]:
    rest = iter(dataset)
    for fact in facts:
        try:
            data = next(rest)
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{name}: Minari cannot read it: {' '.join(str(error).split())}") from error
        yield _episode(data, fact, name, task, source, success_key)


def _buffer(number: int, episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    ends = np.arange(len(episode)) == len(episode) - 1
    seed = episode.metadata.get("seed")
    return EpisodeBuffer(
        id=number,
        seed=seed if isinstance(seed, int) else None,
        observations=dict(episode.observations),
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=ends & episode.terminated,
        truncations=ends & episode.truncated,
        # Lists of numbers: an array of one dimension is what Minari's Arrow storage writes, and cannot read.
        infos={
            SUCCESS: [np.False_, *episode.success],
            DETECTED: [np.float32(np.nan), *episode.detected],
        },
    )


def _facts(episode: Episode) -> dict[str, Any]:
    return {
        "polestar_id": episode.id,
        "task": episode.task.name,
        "instruction": episode.task.instruction,
        "source": str(episode.source),
        "policy_version": episode.policy_version,
        # An episode without a step has no last one to bear these.
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "metadata": metadata_text(episode),
    }


def _episode(
    data: Any, facts: Mapping[str, Any], dataset: str, task: Task, source: Source, success_key: str
) -> Episode:
    steps = len(data.rewards)
    infos = data.infos or {}
    own = "polestar_id" in facts
    actions = np.asarray(data.actions, np.float32).reshape(steps, -1)
    if not own and not (np.abs(actions) <= 1).all():
        raise EpisodeError(f"{dataset}: actions of episode {data.id} lie outside [-1, 1]; rescale the dataset first")
    return Episode(
        id=facts["polestar_id"] if own else f"{dataset}/{data.id}",
        task=Task(facts["task"], facts["instruction"]) if own else task,
        observations=_observations(data.observations, own),
        actions=actions,
        rewards=np.asarray(data.rewards, np.float32),
        success=_after_actions(infos.get(success_key), steps, False).astype(np.bool_),
        detected=_after_actions(infos.get(DETECTED) if own else None, steps, np.nan).astype(np.float32),
        terminated=bool(facts["terminated"] if own else data.terminations[-1]),
        truncated=bool(facts["truncated"] if own else data.truncations[-1]),
        source=Source(facts["source"]) if own else source,
        policy_version=int(facts["policy_version"]) if own else 0,
        metadata=json.loads(facts["metadata"]) if own else {"seed": facts["seed"]} if "seed" in facts else {},
    )


def _after_actions(values: Any, steps: int, missing: Any) -> NDArray[Any]:
    """[T] of an info that has an entry for the reset before, or has none."""
    return (
        np.full(steps, missing) if values is None else np.asarray(values).reshape(-1)[-steps:] if steps else np.empty(0)
    )


def _observations(observations: Any, own: bool) -> dict[str, NDArray[Any]]:
    if not isinstance(observations, Mapping):
        values = np.asarray(observations)
        picture = is_image(values.shape[1:], values.dtype)
        return {IMAGE: values} if picture else {STATE: values.astype(np.float32).reshape(len(values), -1)}
    if own:
        return {key: np.asarray(values) for key, values in observations.items()}
    made = {}
    for key, raw in observations.items():
        values = np.asarray(raw)
        picture = is_image(values.shape[1:], values.dtype)
        made[STATE if key == "observation" else key] = values if picture else values.astype(np.float32)
    return made


def _observation_space(layout: Layout) -> spaces.Dict:
    boxes: dict[str, spaces.Space[Any]] = {}
    for key, spec in layout.observations.items():
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            boxes[key] = spaces.Box(-np.inf, np.inf, spec.shape, dtype.type)
        elif dtype.kind == "b":
            boxes[key] = spaces.MultiBinary(spec.shape)
        else:
            limits = np.iinfo(dtype)
            boxes[key] = spaces.Box(limits.min, limits.max, spec.shape, dtype.type)
    return spaces.Dict(boxes)


def _default_root() -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path())


@contextmanager
def _root(folder: Path) -> Iterator[None]:
    """Minari keeps its datasets in ``folder`` meanwhile: it knows no other way of being told."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _move(scratch: Path, folder: Path, namespace: str | None, dataset_id: str) -> None:
    """The whole dataset to its place, and the files that make its parents a namespace where they are not yet."""
    parents = [Path(*Path(namespace).parts[: n + 1]) for n in range(len(Path(namespace).parts))] if namespace else []
    for parent in parents:
        (folder / parent).mkdir(exist_ok=True)
        for file in (scratch / parent).iterdir():
            if file.is_file() and not (folder / parent / file.name).exists():
                os.replace(file, folder / parent / file.name)
    os.replace(scratch / dataset_id, folder / dataset_id)
