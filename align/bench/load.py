"""Clients of a scoring server, as many at a time as wanted: what each waited for, and what it was told."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import httpx

Dialect = Literal["polestar", "vllm"]


@dataclass(frozen=True, slots=True)
class Group:
    """One request: candidates of one prompt and reference. ``rendered`` is each of them as POLAR's own client sends it
    to vLLM."""

    prompt: str
    reference: str
    outputs: tuple[str, ...]
    rendered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """``concurrency`` clients send the groups to ``url``; each sends its next one when it has its answer."""

    url: str
    dialect: Dialect
    model: str
    groups: tuple[Group, ...]
    concurrency: int


@dataclass(frozen=True, slots=True)
class Measured:
    """``seconds`` for everything, ``latencies`` of each request in seconds, and the scores of each group, in order."""

    seconds: float
    latencies: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]


class LoadError(RuntimeError):
    """A server has answered with something else than scores."""


def serve_load(pipe: Connection) -> None:
    """For a process of its own: answers every :class:`Load` with a :class:`Measured`, or ``{"error": ...}``."""
    while True:
        try:
            load: Load = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send({"measured": asyncio.run(drive(load))})
        except (LoadError, httpx.HTTPError) as error:
            pipe.send({"error": f"{load.url}: {error or type(error).__name__}"})


async def drive(load: Load, transport: httpx.AsyncBaseTransport | None = None) -> Measured:
    """Sends the load. Raises :class:`LoadError` or ``httpx.HTTPError`` when a request has no scores."""
    path, bodies = _requests(load)
    waiting = iter(enumerate(bodies))
    latencies = [0.0] * len(bodies)
    answers: list[Any] = [None] * len(bodies)
    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    async with httpx.AsyncClient(
        base_url=load.url, timeout=None, limits=limits, trust_env=False, transport=transport
    ) as client:

        async def one_client() -> None:
            for index, body in waiting:
                began = time.perf_counter()
                answer = await client.post(path, json=body)
                latencies[index] = time.perf_counter() - began
                if answer.status_code != 200:
                    raise LoadError(f"answered {answer.status_code}: {answer.text[:200]}")
                answers[index] = answer.json()

        began = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(load.concurrency)))
        seconds = time.perf_counter() - began
    scores = [_scores(load.dialect, answer) for answer in answers]
    if [len(found) for found in scores] != [len(group.outputs) for group in load.groups]:
        raise LoadError("answered with another number of scores than there were items")
    return Measured(seconds, tuple(latencies), tuple(scores))


def in_turn(durations: Sequence[float], concurrency: int) -> tuple[float, ...]:
    """What ``concurrency`` clients of a loop would wait: it takes requests one after the other, in their order.

    Client ``i`` sends its next request when it has its answer, hence request ``n`` is sent when request
    ``n - concurrency`` is answered.
    """
    finished: list[float] = []
    for duration in durations:
        finished.append((finished[-1] if finished else 0.0) + duration)
    sent = [0.0] * min(concurrency, len(finished)) + finished[: max(len(finished) - concurrency, 0)]
    return tuple(end - begin for end, begin in zip(finished, sent, strict=True))


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least ``percent`` percent do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def _requests(load: Load) -> tuple[str, list[dict[str, Any]]]:
    if load.dialect == "vllm":
        raw = {"model": load.model, "use_activation": False}
        return "/classify", [{**raw, "input": list(group.rendered)} for group in load.groups]
    bodies = [
        {"items": [{"prompt": g.prompt, "reference": g.reference, "output": output} for output in g.outputs]}
        for g in load.groups
    ]
    return "/v1/score", [dict(body) for body in bodies]


def _scores(dialect: Dialect, answer: Any) -> tuple[float, ...]:
    try:
        if dialect == "vllm":
            return tuple(float(one["probs"][0]) for one in answer["data"])
        return tuple(float(one["reward"]) for one in answer["data"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise LoadError(f"answered without scores: {str(answer)[:200]}") from error
