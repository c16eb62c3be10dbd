"""A store of episodes: a folder of Parquet shards, and a small JSON file that says which of them count.

    store.json             format, version, layout, shards with their counts
    shards/00000.parquet   some episodes, one a row

Shards are only ever added, each written whole beside the others before ``store.json`` names it: whatever happens, a
store holds exactly the episodes that it held after the last shard. Pictures are PNG, or JPEG where less space is worth
the loss.

The shards are plain Parquet, which ``datasets.load_dataset("parquet", ...)`` reads, pictures included. They are written
and read with pyarrow itself, since ``datasets`` copies a Parquet file into an Arrow cache before the first row can be
had, and gives lists back where NumPy arrays went in.
"""

import fcntl
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from rollouts.envs.types import Episode, Source
from rollouts.episodes.codec import OBSERVATION, Layout, from_batch, to_table
from rollouts.episodes.files import EpisodeError, read_json, whole_file, write_json
from rollouts.episodes.images import ImageFormat

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT, VERSION = "polestar-episodes", 1
INFO, SHARDS, LOCK = "store.json", "shards", ".lock"
READ_AT_ONCE = 8
"""Episodes that a reader decodes together."""
SHARD_BYTES = 256 * 2**20
"""A shard is closed early when it holds this much."""


@dataclass(frozen=True, slots=True)
class Count:
    """How much of one task and source there is."""

    task: str
    instruction: str
    source: str
    episodes: int
    steps: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of the store."""

    file: str
    episodes: int
    steps: int
    counts: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What ``store.json`` says. ``rate`` is the robot's decisions a second, None where nobody has told."""

    layout: Layout
    image_format: ImageFormat
    shards: tuple[Shard, ...] = ()
    rate: float | None = None

    @property
    def episodes(self) -> int:
        return sum(shard.episodes for shard in self.shards)

    @property
    def steps(self) -> int:
        return sum(shard.steps for shard in self.shards)

    @property
    def counts(self) -> tuple[Count, ...]:
        """Over all shards, in the order of first appearance."""
        return _summed(count for shard in self.shards for count in shard.counts)


def write_episodes(
    path: Path | str,
    episodes: Iterable[Episode],
    *,
    shard_size: int = 64,
    image_format: ImageFormat = "png",
    known: Literal["refuse", "skip"] = "refuse",
    rate: float | None = None,
) -> StoreInfo:
    """Adds ``episodes`` to the store at ``path``, which is made where there is none; returns what it holds then.

    At most ``shard_size`` episodes go into a file; an error or interruption loses those of the file that is being
    filled, and no others. ``known`` says what happens to an episode whose id the store holds already: it is refused, or
    passed over, which makes an interrupted call good by repeating it. ``rate`` is in decisions a second, one for the
    whole store. Raises :class:`EpisodeError`.
    """
    with EpisodeWriter(path, shard_size=shard_size, image_format=image_format, known=known, rate=rate) as writer:
        for episode in episodes:
            writer.write(episode)
    return read_info(path)


def read_episodes(
    path: Path | str,
    *,
    tasks: Collection[str] | None = None,
    sources: Collection[Source] | None = None,
    keys: Collection[str] | None = None,
) -> Iterator[Episode]:
    """The episodes of a store in the order in which they were written, a few in memory at a time.

    ``tasks`` and ``sources`` (names of tasks, sources) leave the others out; ``keys`` are the observations to read, all
    by default: without pictures a store is read some forty times as fast. Raises :class:`EpisodeError` at once where
    there is no store, and later where a shard is damaged.
    """
    info = read_info(path)
    wanted = list(info.layout.observations) if keys is None else list(keys)
    for key in wanted:
        if key not in info.layout.observations:
            has = ", ".join(info.layout.observations)
            raise EpisodeError(f"{path}: its episodes have no observation {key!r}; they have {has}")
    return _episodes(Path(path), info, wanted, tasks, sources)


def read_info(path: Path | str) -> StoreInfo:
    """What the store at ``path`` holds. Raises :class:`EpisodeError` where it is no store that this version reads."""
    file = Path(path) / INFO
    if not file.is_file():
        raise EpisodeError(f"{path}: no episodes there (no {INFO}); check the path, or generate them first")
    plain = read_json(file)
    if plain.get("format") != FORMAT:
        raise EpisodeError(f"{file}: not a store of episodes (format {plain.get('format')!r})")
    if plain.get("version") != VERSION:
        raise EpisodeError(f"{file}: version {plain.get('version')} of the format; this program reads {VERSION}")
    try:
        shards = tuple(
            Shard(s["file"], s["episodes"], s["steps"], tuple(Count(**count) for count in s["counts"]))
            for s in plain["shards"]
        )
        return StoreInfo(Layout.from_plain(plain["layout"]), plain["image_format"], shards, plain.get("rate"))
    except (KeyError, TypeError) as error:
        raise EpisodeError(f"{file}: damaged: {error!r}; put the file back, or write the episodes anew") from error


def read_ids(path: Path | str) -> list[str]:
    """The ids of all episodes, in order. Raises like :func:`read_episodes`."""
    info = read_info(path)
    return [id for shard in info.shards for id in _ids(Path(path) / SHARDS / shard.file)]


class EpisodeWriter:
    """Adds episodes to a store, shard by shard; a context manager, alone in its store while it is open.

    What is not yet in a shard is written when the block ends well, and lost when it does not. Raises
    :class:`EpisodeError` when another writer has the store, when an episode does not fit it, or where the disk refuses.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        shard_size: int = 64,
        image_format: ImageFormat = "png",
        known: Literal["refuse", "skip"] = "refuse",
        rate: float | None = None,
    ) -> None:
        if shard_size < 1:
            raise EpisodeError(f"shard_size must be at least 1, got {shard_size}")
        if rate is not None and not 0 < rate < math.inf:
            raise EpisodeError(f"rate must be above 0 decisions a second, got {rate}")
        self._path = Path(path)
        self._size = shard_size
        self._format = image_format
        self._known = known
        self._rate = rate
        self._waiting: list[tuple[Count, pa.Table]] = []
        self._lock: IO[str] | None = None

    def __enter__(self) -> "EpisodeWriter":
        self._lock = _locked(self._path)
        try:
            self._info = read_info(self._path) if (self._path / INFO).is_file() else None
            self._ids = set(read_ids(self._path)) if self._info else set()
            if self._info and self._info.image_format != self._format:
                raise EpisodeError(f"{self._path}: its pictures are {self._info.image_format}, not {self._format}; "
                                   "keep to one format, or use another folder")  # fmt: skip
            if self._info and self._info.rate is not None:
                if self._rate not in (None, self._info.rate):
                    raise EpisodeError(f"{self._path}: its episodes have {self._info.rate:g} decisions a second, not "
                                       f"{self._rate:g}; use another folder")  # fmt: skip
                self._rate = self._info.rate
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        assert self._lock is not None
        try:
            if kind is None:
                self.flush()
        finally:
            self._lock.close()

    def __contains__(self, id: str) -> bool:
        """Whether the store, or what waits for its shard, has an episode of this id."""
        return id in self._ids

    def write(self, episode: Episode) -> None:
        if episode.id in self._ids:
            if self._known == "skip":
                return
            raise EpisodeError(f"{self._path}: holds episode {episode.id!r} already; ids must differ")
        if self._info is None:
            self._info = StoreInfo(Layout.of(episode), self._format)
        self._info.layout.check(episode)
        # Pictures are compressed now: what waits for its shard is small, and a bad episode is told by its writer.
        count = Count(episode.task.name, episode.task.instruction, str(episode.source), 1, len(episode))
        self._waiting.append((count, to_table([episode], self._info.layout, self._format)))
        self._ids.add(episode.id)
        if len(self._waiting) == self._size or sum(table.nbytes for _, table in self._waiting) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Makes a shard of what waits."""
        if not self._waiting:
            return
        import pyarrow as pa

        assert self._info is not None
        file = f"{len(self._info.shards):05d}.parquet"
        _write_shard(self._path / SHARDS / file, pa.concat_tables([table for _, table in self._waiting]))
        counts = _summed(count for count, _ in self._waiting)
        shard = Shard(file, len(self._waiting), sum(count.steps for count in counts), counts)
        info = StoreInfo(self._info.layout, self._format, (*self._info.shards, shard), self._rate)
        # The shard counts from here on: a crash before leaves a file that nothing names, and the next one replaces.
        write_json(self._path / INFO, _plain(info))
        self._info, self._waiting = info, []


def _plain(info: StoreInfo) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "episodes": info.episodes,
        "steps": info.steps,
        "image_format": info.image_format,
        "rate": info.rate,
        "layout": info.layout.plain(),
        "counts": [asdict(count) for count in info.counts],
        "shards": [asdict(shard) for shard in info.shards],
    }


def _summed(counts: Iterable[Count]) -> tuple[Count, ...]:
    sums: dict[tuple[str, str, str], tuple[int, int]] = {}
    for c in counts:
        episodes, steps = sums.get((c.task, c.instruction, c.source), (0, 0))
        sums[c.task, c.instruction, c.source] = episodes + c.episodes, steps + c.steps
    return tuple(Count(*key, *value) for key, value in sums.items())


def _write_shard(path: Path, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    # Dictionaries are for texts: Arrow's would make one number of the different bit patterns of NaN, and of 0 and -0.
    texts = [field.name for field in table.schema if str(field.type) == "string"]
    with whole_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=READ_AT_ONCE,
            compression="zstd",
            use_dictionary=texts,
            # Statistics of pictures would be whole pictures, outside of what a checksum covers.
            write_statistics=texts,
            write_page_checksum=True,
        )


def _episodes(
    path: Path, info: StoreInfo, keys: list[str], tasks: Collection[str] | None, sources: Collection[Source] | None
) -> Iterator[Episode]:
    hidden = {OBSERVATION + key for key in info.layout.observations} - {OBSERVATION + key for key in keys}
    kept_sources = None if sources is None else {str(source) for source in sources}

    def wanted(count: Mapping[str, Any]) -> bool:
        return (tasks is None or count["task"] in tasks) and (kept_sources is None or count["source"] in kept_sources)

    for shard in info.shards:
        if not any(wanted(asdict(count)) for count in shard.counts):
            continue
        where = path / SHARDS / shard.file
        with _opened(where, shard.episodes) as file:
            columns = [name for name in file.schema_arrow.names if name not in hidden]
            for batch in _batches(file, where, columns):
                kept = [i for i, row in enumerate(batch.select(["task", "source"]).to_pylist()) if wanted(row)]
                yield from from_batch(batch.take(kept), info.layout, keys, str(where))


def _ids(path: Path) -> list[str]:
    with _opened(path) as file:
        return [id for batch in _batches(file, path, ["id"]) for id in batch.column("id").to_pylist()]


def _opened(path: Path, rows: int | None = None) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        reason = "missing" if not path.exists() else "damaged"
        raise EpisodeError(f"{path}: {reason}, and the store counts on it; put it back, or write the episodes anew"
                           ) from error  # fmt: skip
    if rows is not None and file.metadata.num_rows != rows:
        raise EpisodeError(f"{path}: {file.metadata.num_rows} episodes where the store counts {rows}; put the file "
                           "back, or write the episodes anew")  # fmt: skip
    return file


def _batches(file: "pq.ParquetFile", path: Path, columns: list[str]) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    try:
        yield from file.iter_batches(batch_size=READ_AT_ONCE, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise EpisodeError(f"{path}: damaged, and the store counts on it; put it back, or write the episodes anew"
                           ) from error  # fmt: skip


def _locked(path: Path) -> IO[str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a")  # noqa: SIM115 (held until the writer closes)
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise EpisodeError(f"{path}: another process is writing there; wait for it, or use another folder") from error
    return lock
