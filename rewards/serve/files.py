"""A file of items scored into another file, which a stop at any moment leaves whole, and the next call continues."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from rewards.errors import RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.progress import ItemProgress, NoProgress
from rewards.serve.records import FileRecord, read_records, scored, unscored
from rewards.serve.wire import Identity
from rewards.types import ScoreFailure


class FileScorer(Protocol):
    """:class:`rewards.polar.scorer.PolarScorer` and :class:`rewards.serve.client.RewardClient` are such scorers."""

    def score_items(self, items: Sequence[PolarItem], /) -> Sequence[ItemScore]: ...


@runtime_checkable
class Identified(Protocol):
    """Knows who scores."""

    def identity(self) -> Identity: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call did: ``items`` scored by it, those of them that ``failed``, those ``kept`` from an earlier call, and
    the ``seconds`` it took."""

    items: int
    failed: int
    kept: int
    seconds: float


def folder_identity(name: str, folder: Path) -> Identity:
    """Who scores where a model folder is read in this process: ``name``, and a digest of configuration and weights.

    The digest is SHA-256 over ``config.json``, the tokenizer's JSON files and the safetensors files, each with its
    name; it takes about a second for a gigabyte. Raises :class:`RewardError` where there are no weights.
    """
    files = sorted({*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("tokenizer*.json")})
    if not any(file.suffix == ".safetensors" for file in files):
        raise RewardError(f"{folder}: holds no safetensors files: give the folder of a model")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return Identity(name, f"sha256:{digest.hexdigest()[:32]}")


def score_file(
    source: Path,
    target: Path,
    scorer: FileScorer,
    *,
    identity: Callable[[], Identity] | None = None,
    batch_items: int = 256,
    progress: ItemProgress | None = None,
) -> Summary:
    """Scores the records of ``source`` (:func:`rewards.serve.records.read_records`) into ``target``.

    One line comes of each, in order (:func:`rewards.serve.records.scored`). Every line of ``source`` is checked before
    anything is scored. Batches of whole records, at least ``batch_items`` items while there are so many, are appended
    and flushed to the disk, so that ``target`` always holds whole lines of finished work. Where it exists already, its
    lines must be those of the first records of ``source``, scored by the same model and weights, and are kept.

    ``identity`` says who scores; the scorer's own by default. Raises :class:`RewardError`: for a line that cannot be
    read, a ``target`` of another file or model, weights that change on the way, and what the scorer raises.
    """
    if batch_items <= 0:
        raise RewardError("batch_items must be above 0")
    if identity is None:
        if not isinstance(scorer, Identified):
            raise RewardError("score_file needs identity: this scorer does not say who it is")
        identity = scorer.identity
    if target.exists() and target.samefile(source):
        raise RewardError(f"{target}: is the file to be scored: write to another file")
    began = time.monotonic()
    shown = progress or NoProgress()
    total = sum(len(record.items) for record in read_records(source))
    done = _done(source, target)
    who = identity()
    if done.lines and done.identity != who:
        raise RewardError(
            f"{target}: was scored by {_shown(done.identity)}, not by {_shown(who)}: "
            "write to another file, or remove this one to start anew"
        )
    items = failed = 0
    shown.start(total, done.items)
    try:
        with _appending(target, done.end) as file:
            for batch in _batches(read_records(source), done.lines, batch_items):
                scores = _score(scorer, batch)
                if identity() != who:
                    raise RewardError(
                        f"{target}: {_shown(who)} became {_shown(identity())} before {batch[0].where}: scores of two "
                        "models do not compare; score the file anew with weights that stay"
                    )
                _append(file, batch, scores, who)
                broken = sum(isinstance(score.score, ScoreFailure) for score in scores)
                items, failed = items + len(scores), failed + broken
                shown.advance(len(scores), broken)
    finally:
        shown.close()
    return Summary(items, failed, done.items, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class _Done:
    """What a target holds: whole lines up to the byte ``end``, the items of them, and who scored them."""

    lines: int
    items: int
    end: int
    identity: Identity


def _done(source: Path, target: Path) -> _Done:
    """Checks that the lines of ``target`` were made of the first records of ``source``."""
    lines = items = end = 0
    identity = Identity(None, None)
    if not target.exists():
        return _Done(lines, items, end, identity)
    with target.open("rb") as file:
        whole = (line for line in file if line.endswith(b"\n"))
        for written, record in zip_longest(whole, read_records(source)):
            if written is None:
                break
            line = _object(written)
            # Compared as JSON text: 1 and true are equal to Python, and NaN is not equal to itself.
            if record is None or line is None or _text(unscored(line)) != _text(record.record):
                raise RewardError(
                    f"{target}:{lines + 1}: is not the scored form of "
                    f"{record.where if record else f'any line of {source}'}: write to another file"
                )
            identity = Identity(line.get("model"), line.get("weights"))
            lines, items, end = lines + 1, items + len(record.items), end + len(written)
    return _Done(lines, items, end, identity)


def _batches(records: Iterator[FileRecord], skip: int, size: int) -> Iterator[list[FileRecord]]:
    batch: list[FileRecord] = []
    for i, record in enumerate(records):
        if i < skip:
            continue
        batch.append(record)
        if sum(len(r.items) for r in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _score(scorer: FileScorer, batch: Sequence[FileRecord]) -> list[ItemScore]:
    items = [item for record in batch for item in record.items]
    scores = list(scorer.score_items(items))
    if len(scores) != len(items):
        raise RewardError(f"the scorer gave {len(scores)} scores for {len(items)} items")
    return scores


def _appending(target: Path, end: int) -> BinaryIO:
    """``target`` open for writing after its whole lines; what a stop left of a torn one is cut off."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = open(target, "r+b" if target.exists() else "xb")  # noqa: SIM115
        file.seek(end)
        file.truncate()
        return file
    except OSError as error:
        raise RewardError(f"{target}: cannot be written ({error.strerror}): choose another path") from error


def _append(file: BinaryIO, batch: Sequence[FileRecord], scores: Sequence[ItemScore], who: Identity) -> None:
    left = iter(scores)
    lines = [_line(scored(record, [next(left) for _ in record.items], who)) for record in batch]
    file.write(b"".join(lines))
    file.flush()
    os.fsync(file.fileno())


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(record: Any) -> bytes:
    try:
        return f"{_text(record)}\n".encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can hold and UTF-8 cannot.
        return f"{json.dumps(record)}\n".encode()


def _text(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False)


def _shown(identity: Identity) -> str:
    return f"{identity.model or 'an unnamed model'} (weights {identity.weights})"
