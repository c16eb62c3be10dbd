"""Triples on disk: sharded Parquet files, ``data/SPLIT-00000-of-00003.parquet``, a triple a row."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.polar.corpus.config import SPLITS, Mode, Split
from rewards.polar.files import whole_file
from rewards.polar.types import PolarError, Triple, Wrapper

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

DATA_FOLDER = "data"


@dataclass(frozen=True, slots=True)
class Row:
    """A stored triple. Lengths are in tokens of the corpus' one tokenizer; ``source`` is the id of the text or prompt
    it is from."""

    prompt: str
    reference: str
    chosen: str
    rejected: str
    wrapper: Wrapper
    policy_a: str
    policy_b: str
    mode: Mode
    split: Split
    source: str
    prompt_tokens: int
    reference_tokens: int
    chosen_tokens: int
    rejected_tokens: int


TEXTS = ("prompt", "reference", "chosen", "rejected")
LENGTHS = tuple(f"{name}_tokens" for name in TEXTS)
_METADATA = ("policy_a", "policy_b", "mode", "split", "source")


def load_triples(folder: Path, split: Split) -> list[Triple]:
    """The triples of one split of a corpus, in its order; policies, mode, split and source are their metadata.

    Raises :class:`PolarError` when the folder holds no finished corpus.
    """
    return [
        Triple(
            row["prompt"],
            row["reference"],
            row["chosen"],
            row["rejected"],
            row["wrapper"],
            {name: row[name] for name in _METADATA},
        )
        for row in load_table(folder, split).to_pylist()
    ]


def load_dataset(folder: Path, split: Split) -> "datasets.Dataset":
    """One split with all columns of :class:`Row`. Raises like :func:`load_triples`."""
    import datasets

    return datasets.Dataset(load_table(folder, split))


def load_table(folder: Path, split: Split, columns: Sequence[str] | None = None) -> "pa.Table":
    """One split, or some columns of it. Raises like :func:`load_triples`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(file, columns=list(columns) if columns else None) for file in _files(folder, split)]
    if tables:
        return pa.concat_tables(tables)
    empty = _schema("").empty_table()
    return empty.select(list(columns)) if columns else empty


def spread_rows(folder: Path, split: Split, limit: int) -> list[dict[str, Any]]:
    """At most ``limit`` rows of a split, evenly spread over it, a shard in memory at a time."""
    import pyarrow.parquet as pq

    files = _files(folder, split)
    sizes = [pq.read_metadata(file).num_rows for file in files]
    total, start = sum(sizes), 0
    rows: list[dict[str, Any]] = []
    wanted = sorted({index * total // limit for index in range(limit)}) if total else []
    for file, size in zip(files, sizes, strict=True):
        here = [index - start for index in wanted if start <= index < start + size]
        rows += pq.read_table(file).take(here).to_pylist() if here else []
        start += size
    return rows


def write_shards(folder: Path, rows: Iterator[Row], counts: Mapping[Split, int], size: int, tokenizer: str) -> None:
    """Writes all ``rows``, of which ``counts`` says how many each split has, ``size`` of them a file.

    The data folder appears when it is whole; an older one is replaced.
    """
    scratch, target = folder / f".{DATA_FOLDER}.part", folder / DATA_FOLDER
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    waiting: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    written: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def flush(split: Split) -> None:
        name = f"{split}-{written[split]:05d}-of-{-(-counts[split] // size):05d}.parquet"
        _write(scratch / name, waiting[split], tokenizer)
        waiting[split] = []
        written[split] += 1

    for row in rows:
        waiting[row.split].append(row)
        if len(waiting[row.split]) == size:
            flush(row.split)
    for split in SPLITS:
        if waiting[split]:
            flush(split)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)


def _files(folder: Path, split: Split) -> list[Path]:
    if split not in SPLITS:
        raise PolarError(f"a corpus has the splits {', '.join(SPLITS)}, not {split!r}")
    data = folder / DATA_FOLDER
    if not data.is_dir():
        raise PolarError(f"{folder}: no finished corpus there (no folder '{DATA_FOLDER}'): build it first")
    return sorted(data.glob(f"{split}-*.parquet"))


def _write(path: Path, rows: Sequence[Row], tokenizer: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema(tokenizer)), temporary)


def _schema(tokenizer: str) -> "pa.Schema":
    import pyarrow as pa

    fields = [
        (name, pa.int32() if name in LENGTHS else pa.string())
        for name in (*TEXTS, "wrapper", *_METADATA, *LENGTHS)
    ]  # fmt: skip
    return pa.schema(fields, metadata={"lengths_in_tokens_of": tokenizer} if tokenizer else None)
