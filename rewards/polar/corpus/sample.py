"""Sampling: each model is loaded once, and every chunk of its policies' prompts becomes a file of raw samples."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.polar.corpus.config import CorpusConfig, PolicySpec
from rewards.polar.corpus.plan import Item
from rewards.polar.files import whole_file
from rewards.polar.types import PolarError
from rollouts.chat import ChatRenderer
from rollouts.collector import EngineSupervisor, request_seed
from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.models import load_tokenizer, merged, resolve
from rollouts.types import Finish, Origin

RAW_FOLDER = "raw"
OpenEngine = Callable[[Path], AbstractContextManager[Engine]]
"""Serves the model of a folder for as long as the context lasts."""


@dataclass(frozen=True, slots=True)
class RawSample:
    """One sample as it was decoded. ``tokens`` counts those of its own model, the end of the sequence included."""

    text: str
    finish: Finish
    tokens: int


@dataclass(frozen=True, slots=True)
class RawRow:
    """A policy's samples for one item; none where prompt and completion do not fit the model's context."""

    source: str
    samples: tuple[RawSample, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items that one policy is asked in one call, and the file for what it says."""

    policy: PolicySpec
    items: tuple[Item, ...]
    path: Path


def chunks_of(config: CorpusConfig, items: Sequence[Item], folder: Path) -> list[list[Chunk]]:
    """All work, grouped so that each model is loaded once; a policy's chunks follow the order of ``items``."""
    groups: dict[tuple[str, str | None], list[Chunk]] = {}
    for policy in config.policies:
        own = [item for item in items if policy.name in (item.policy_a, item.policy_b)]
        stem = hashlib.sha256(policy.name.encode()).hexdigest()[:12]
        for number, start in enumerate(range(0, len(own), config.chunk_prompts)):
            path = folder / RAW_FOLDER / f"{stem}-{number:05d}.parquet"
            chunk = Chunk(policy, tuple(own[start : start + config.chunk_prompts]), path)
            groups.setdefault(policy.weights, []).append(chunk)
    return list(groups.values())


def sample_all(
    config: CorpusConfig,
    groups: Sequence[Sequence[Chunk]],
    open_engine: OpenEngine,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
    recoverable: tuple[type[Exception], ...],
) -> None:
    """Makes every chunk's file that is not there yet. A model all of whose files are there is not loaded.

    A chunk is always sampled as a whole, with seeds that depend on nothing but run, policy, prompt and number, so that
    a run that was killed and started again gives the same files as one that was not.
    """
    total = sum(len(group) for group in groups)
    done = sum(chunk.path.exists() for group in groups for chunk in group)
    if done:
        say(f"{done} of {total} chunks are there already")
    for group in groups:
        missing = [chunk for chunk in group if not chunk.path.exists()]
        if not missing:
            continue
        folder = _folder(missing[0].policy)
        tokenizer = load_tokenizer(folder)
        renderers = {chunk.policy.name: policy_renderer(chunk.policy, tokenizer) for chunk in missing}
        # Any special token ends a sample: it is the model's end, or begins another document or turn.
        stops = tuple(sorted({int(token) for token in (*tokenizer.all_special_ids, tokenizer.eos_token_id)}))
        say(f"{missing[0].policy.model}: {len(missing)} chunks to sample")
        with open_engine(folder) as engine:
            supervisor = EngineSupervisor(engine, recoverable)
            for chunk in missing:
                sampler = _Sampler(config, chunk.policy, renderers[chunk.policy.name], stops, supervisor)
                write_raw(chunk.path, sampler.sample(chunk.items))
                done += 1
                progress(done, total)


def policy_renderer(policy: PolicySpec, tokenizer: Any) -> ChatRenderer:
    """How ``policy`` is asked. Raises :class:`PolarError` when a chat policy's model has no chat template."""
    if policy.mode == "base":
        return ChatRenderer(tokenizer).plain()
    renderer = ChatRenderer(tokenizer, policy.system_prompt)
    if not renderer.templated:
        raise PolarError(f"policy {policy.name!r}: model '{policy.model}' has no chat template: use mode base")
    return renderer


class _Sampler:
    def __init__(
        self,
        config: CorpusConfig,
        policy: PolicySpec,
        renderer: ChatRenderer,
        stops: tuple[int, ...],
        supervisor: EngineSupervisor,
    ) -> None:
        self._config = config
        self._policy = policy
        self._renderer = renderer
        self._supervisor = supervisor
        self._params = SamplingParams(
            max_new_tokens=config.max_new_tokens,
            stop_token_ids=stops,
            temperature=policy.temperature,
            top_p=policy.top_p,
            top_k=policy.top_k,
        )

    def sample(self, items: Sequence[Item]) -> list[RawRow]:
        room = self._supervisor.engine.max_context() - self._config.max_new_tokens
        asked = [(item, self._renderer.prompt_ids(item.prompt)) for item in items]
        requests = [Request(ids, self._seeds(item)) for item, ids in asked if len(ids) <= room]
        results = iter(self._supervisor.generate(requests, self._params) if requests else [])
        rows = []
        for item, ids in asked:
            samples = next(results) if len(ids) <= room else []
            rows.append(RawRow(item.source, tuple(self._decoded(ids, sample) for sample in samples)))
        return rows

    def _seeds(self, item: Item) -> tuple[int, ...]:
        positives, negatives = self._config.positives_per_prompt, self._config.negatives_per_prompt
        count = positives if item.policy_a == self._policy.name else negatives
        key = f"{self._policy.name}\0{item.prompt.id}"
        return tuple(request_seed(self._config.seed, key, Origin.POLICY, index, step=0) for index in range(count))

    def _decoded(self, prompt_ids: tuple[int, ...], sample: Sample) -> RawSample:
        text = self._renderer.text(sample.token_ids)
        if self._policy.mode == "base":
            # Some tokenizers drop the blank before the first word: only behind its prefix is a continuation whole.
            prefix, whole = self._renderer.text(prompt_ids), self._renderer.text((*prompt_ids, *sample.token_ids))
            text = whole[len(prefix) :] if whole.startswith(prefix) else text
        return RawSample(text, sample.finish, len(sample.token_ids))


def _folder(policy: PolicySpec) -> Path:
    return merged(policy.model, policy.adapter) if policy.adapter else resolve(policy.model)


def write_raw(path: Path, rows: Sequence[RawRow]) -> None:
    """A chunk's samples in one Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sample = pa.struct([("text", pa.string()), ("finish", pa.string()), ("tokens", pa.int32())])
    schema = pa.schema([("source", pa.string()), ("samples", pa.list_(sample))])
    plain = [
        {
            "source": row.source,
            "samples": [{"text": s.text, "finish": str(s.finish), "tokens": s.tokens} for s in row.samples],
        }
        for row in rows
    ]
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(plain, schema=schema), temporary)


def read_raw(path: Path) -> list[RawRow]:
    """The rows of :func:`write_raw`. Raises :class:`PolarError` when the file is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        plain: list[Mapping[str, Any]] = pq.read_table(path).to_pylist()
        return [
            RawRow(
                row["source"],
                tuple(RawSample(s["text"], Finish(s["finish"]), s["tokens"]) for s in row["samples"]),
            )
            for row in plain
        ]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise PolarError(f"{path}: not a file of raw samples: remove it, and it is sampled again") from error


def raw_rows(items: Sequence[Item], groups: Sequence[Sequence[Chunk]]) -> Iterator[tuple[Item, RawRow, RawRow]]:
    """Every item with the rows of its policies A and B, one chunk of each policy in memory at a time."""
    rows = {name: _rows(chunks) for name, chunks in _by_policy(groups).items()}
    for item in items:
        yield item, next(rows[item.policy_a]), next(rows[item.policy_b])


def _by_policy(groups: Sequence[Sequence[Chunk]]) -> dict[str, list[Chunk]]:
    chunks: dict[str, list[Chunk]] = {}
    for group in groups:
        for chunk in group:
            chunks.setdefault(chunk.policy.name, []).append(chunk)
    return chunks


def _rows(chunks: Sequence[Chunk]) -> Iterator[RawRow]:
    for chunk in chunks:
        rows = read_raw(chunk.path)
        if [row.source for row in rows] != [item.source for item in chunk.items]:
            raise PolarError(f"{chunk.path}: holds samples of other prompts: remove it, and it is sampled again")
        yield from rows
