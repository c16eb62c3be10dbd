"""Where preference records come from: files, the hub, and reasoning-gym problems with made answers.

A source is read in one of two ways. ``open_records`` gives all records, in any order; what ``datasets`` loads stays on
the disk. ``open_stream`` gives one after the other and keeps none; its state is a place in the data.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rewards.preference_data import Located
from rollouts.prompts import JsonLine, PromptError, gym_prompts, jsonl_lines, question_of


@dataclass(frozen=True, slots=True)
class JsonlPairs:
    """A file with one JSON object a line."""

    path: str


@dataclass(frozen=True, slots=True)
class HubPairs:
    """A data set of the Hugging Face hub; ``subset`` is what the hub calls its configuration."""

    name: str
    split: str = "train"
    subset: str | None = None


@dataclass(frozen=True, slots=True)
class FilePairs:
    """A parquet, JSON, CSV or Arrow file, a folder of them, or what ``save_to_disk`` of ``datasets`` wrote.

    A folder's files belong to the split that their names say, to ``train`` where they say nothing.
    """

    path: str
    split: str = "train"


@dataclass(frozen=True, slots=True)
class GymPairs:
    """Problems of a reasoning-gym task whose answers are whole numbers.

    Chosen is "The answer is 7." with the right number, rejected the same sentence with a wrong one, at most 10 off.
    That is little, and enough for a model that can form sentences to learn which answers are right.
    """

    task: str
    size: int
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)


PairSource = JsonlPairs | HubPairs | FilePairs | GymPairs


class RecordStream(Protocol):
    """Records in the data's own order, from a place that is the state."""

    def read(self, count: int) -> list[Located]:
        """The next ``count`` records; fewer at the end of the data."""
        ...

    def rewind(self, epoch: int) -> None:
        """Back to the start, for the epoch of this number; data in several parts may change their order."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def name_of(source: PairSource) -> str:
    """What a source is called in messages."""
    match source:
        case JsonlPairs(path=path) | FilePairs(path=path):
            return path
        case HubPairs(name=name):
            return f"hub:{name}"
        case GymPairs(task=task):
            return f"gym_pairs:{task}"


def open_records(source: PairSource, exclude: frozenset[str] = frozenset()) -> Sequence[Located]:
    """All records; those of the gym hold none of the questions ``exclude``. Raises :class:`PromptError`."""
    match source:
        case JsonlPairs(path=path):
            return [(f"{path}:{line.number}", line.record) for line in jsonl_lines(Path(path))]
        case GymPairs():
            return gym_pairs(source, exclude)
        case _:
            return _DatasetRecords(_load(source, streaming=False), name_of(source))


def open_stream(source: JsonlPairs | HubPairs | FilePairs) -> RecordStream:
    """The records one after the other. Raises :class:`PromptError`."""
    if isinstance(source, JsonlPairs):
        return JsonlStream(Path(source.path))
    return DatasetStream(_load(source, streaming=True), name_of(source))


def gym_pairs(source: GymPairs, exclude: frozenset[str] = frozenset()) -> list[Located]:
    """Conversational records with ``prompt``, ``chosen`` and ``rejected``; :class:`GymPairs` says what they hold."""
    prompts = gym_prompts(source.task, size=source.size, seed=source.seed, config=source.config, exclude=exclude)
    records: list[Located] = []
    for prompt in prompts:
        if not re.fullmatch(r"-?\d+", prompt.answer or ""):
            raise PromptError(
                f"gym_pairs: task {source.task!r} has the answer {prompt.answer!r}, which is not a whole number: "
                "choose a task such as chain_sum"
            )
        right = int(prompt.answer or "")
        error = random.Random(f"{source.seed}:{prompt.id}").choice([d for d in range(-10, 11) if d != 0])
        texts = {"chosen": f"The answer is {right}.", "rejected": f"The answer is {right + error}."}
        answers = {side: [{"role": "assistant", "content": text}] for side, text in texts.items()}
        records.append((prompt.id, {"prompt": [{"role": "user", "content": question_of(prompt)}], **answers}))
    return records


class JsonlStream:
    """Implements :class:`RecordStream` for a JSON-lines file: the place is a byte offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rewind(0)

    def read(self, count: int) -> list[Located]:
        lines = list(islice(self._lines, count))
        if lines:
            self._number, self._end = lines[-1].number, lines[-1].end
        return [(f"{self._path}:{line.number}", line.record) for line in lines]

    def rewind(self, epoch: int) -> None:
        self.load_state_dict({"number": 0, "end": 0})

    def state_dict(self) -> dict[str, Any]:
        return {"number": self._number, "end": self._end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._number, self._end = state["number"], state["end"]
        self._lines: Iterator[JsonLine] = jsonl_lines(self._path, self._number, self._end)


class DatasetStream:
    """Implements :class:`RecordStream` for an ``IterableDataset``: the place is the data set's own ``state_dict``.

    The data set must not be shuffled, since its shuffle buffer is not part of that state. Where it is made of several
    files their order changes from epoch to epoch.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name
        self.rewind(0)

    def read(self, count: int) -> list[Located]:
        try:
            records = list(islice(self._records, count))
        except Exception as error:
            # Whatever a file format's reader raises on a file that it cannot read.
            raise _unreadable(self._name, error) from error
        if records:
            self._place = self._dataset.state_dict()
        first = self._number + 1
        self._number += len(records)
        return [(f"{self._name}, record {first + i}", record) for i, record in enumerate(records)]

    def rewind(self, epoch: int) -> None:
        self.load_state_dict({"epoch": epoch, "number": 0, "place": None})

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "number": self._number, "place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._number, self._place = state["epoch"], state["number"], state["place"]
        self._dataset.set_epoch(self._epoch)
        self._dataset.load_state_dict(self._place or {})
        self._records: Iterator[Mapping[str, Any]] = iter(self._dataset)


class _DatasetRecords(Sequence[Located]):
    """The rows of a ``datasets.Dataset``, which stay on the disk."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return f"{self._name}, record {index + 1}", self._dataset[index]


_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


def _load(source: HubPairs | FilePairs, *, streaming: bool) -> Any:
    """A ``Dataset``, or an ``IterableDataset`` where ``streaming``."""
    import datasets

    try:
        if isinstance(source, HubPairs):
            return datasets.load_dataset(source.name, source.subset, split=source.split, streaming=streaming)
        path = Path(source.path)
        saved = path / source.split if (path / "dataset_dict.json").is_file() else path
        if (saved / "state.json").is_file():
            dataset = datasets.load_from_disk(str(saved))
            return dataset.to_iterable_dataset() if streaming else dataset
        if path.is_dir() and saved == path:
            return datasets.load_dataset(str(path), split=source.split, streaming=streaming)
        if path.is_file():
            builder = _BUILDERS.get(path.suffix)
            if builder is None:
                raise PromptError(f"{path}: unknown kind of file: expected {', '.join(_BUILDERS)}")
            return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=streaming)
    except PromptError:
        raise
    except Exception as error:
        raise _unreadable(name_of(source), error) from error
    missing = f"it has no split {source.split!r}" if path.is_dir() else "no such file or folder"
    raise PromptError(f"{path}: {missing}: check the path in the recipe")


def _unreadable(name: str, error: Exception) -> PromptError:
    cause = error.__cause__ or error
    reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
    if isinstance(cause, StopIteration):  # what the readers of datasets raise on an empty file
        reason = "it is empty"
    advice = "check name and network, or use a local file" if name.startswith("hub:") else "check the file"
    return PromptError(f"{name}: cannot be loaded ({reason}): {advice}")
