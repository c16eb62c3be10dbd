"""``align polar eval``: preference accuracy with a reference, beside everything simpler that might do as well."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.build import user_errors
from align.checkpoint import write_atomically
from align.errors import UserError

JUDGED_SUFFIX = ".jsonl.gz"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured: ``data`` is a jsonl file of ranked triples, a corpus (its ``split``), or judged policies.

    ``backbone`` is a second model to compare with; ``limit`` the most triples; ``max_response_length`` in tokens.
    """

    model: str
    data: Path
    split: str = "validation"
    backbone: str | None = None
    limit: int | None = None
    max_response_length: int | None = None
    backend: Literal["transformers", "vllm"] = "transformers"
    out: Path | None = None


def main(evaluation: Evaluation) -> int:
    """Prints the tables, and writes the report where it is wanted; raises ``UserError`` for what the user can mend."""
    with user_errors():
        from rewards.polar.evaluate import evaluate
        from rewards.polar.evaluation_report import markdown, to_json
        from rewards.similarity import MiniLM, SimilarityScorer

        triples = load(evaluation.data, evaluation.split)[: evaluation.limit]
        if not triples:
            raise UserError(f"{evaluation.data}: holds no triples to evaluate on")
        with ExitStack() as stack:
            names = [evaluation.model, *([evaluation.backbone] if evaluation.backbone else [])]
            scorers = {name: _score(name, evaluation, stack) for name in names}
            report = evaluate(triples, scorers, similarity={"MiniLM": SimilarityScorer(MiniLM()).similarities})
        print(markdown(report), end="")
        if evaluation.out is not None:
            evaluation.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(evaluation.out, to_json(report) + "\n")
            print(f"\nwritten to {evaluation.out}")
    return 0


def load(data: Path, split: str) -> Sequence[Any]:
    """The triples of a file or a corpus."""
    if data.is_dir():
        from rewards.polar.corpus.store import load_triples

        if split not in ("validation", "heldout_policies"):
            raise UserError(f"unknown split '{split}': use validation or heldout_policies")
        chosen: Literal["validation", "heldout_policies"] = split  # type: ignore[assignment]
        return load_triples(data, chosen)
    if data.name.endswith(JUDGED_SUFFIX):
        from rewards.polar.judged_policies import judged_triples, read_judged

        return judged_triples(read_judged(data))
    from rewards.polar.triples import read_triples

    return read_triples(data)


def _score(name: str, evaluation: Evaluation, stack: ExitStack) -> Any:
    from rewards.polar.model import resolve_polar
    from rewards.polar.reward import plain_scores
    from rewards.polar.scorer import open_scorer

    scorer = open_scorer(
        resolve_polar(name),
        backend=evaluation.backend,
        max_response_length=evaluation.max_response_length,
    )
    stack.enter_context(closing(scorer))
    return plain_scores(scorer.score_items)
