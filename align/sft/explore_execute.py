"""Training data whose executions adhere to their plans, with a ledger of what was kept, what was dropped, and why.

From "Explore-Execute Chain" (arXiv 2509.23946), as its abstract and public accounts of its data algorithm have it: the
execution that is trained on is generated from the plan, not the solution that the plan was drawn from afterwards, so
that the plan causes the execution; plans are sampled, executions deterministic. Ours: the plan is sampled directly
instead of being distilled from a full solution, adherence is verified by a program (:mod:`rewards.adherence`) and not
only asked for, a problem without a good example is drawn again, and a program can stand in for the model as the source.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from align.checkpoint import write_atomically
from rewards.adherence import plan_violation, violation
from rewards.types import ScoreFailure, Scorer
from rollouts.chat import ChatRenderer
from rollouts.collector import request_seed
from rollouts.engines.base import Request, Sample, SamplingParams
from rollouts.explore_execute import EXECUTION, PLAN, compose
from rollouts.prompts import question_of
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

KEPT: Final = "kept"

_ASK_FOR_A_PLAN = (
    "{question}\n\nDo not solve it yet. Write the plan: one line, the steps between semicolons, each with its numbers "
    "and operation and without a result. A step that goes on from the one before begins with its operation.\n"
    "Example for 2 + 6 - 1: 2 + 6; then - 1"
)
_ASK_FOR_THE_EXECUTION = (
    "{question}\n\nPlan: {plan}\n\nCarry out this plan, step by step, in its order, with one equation for each step "
    "and nothing else. Then write the answer.\nExample for the plan 2 + 6; then - 1: 2 + 6 = 8; 8 - 1 = 7. Answer: 7"
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan or an execution as its source wrote it; ``whole`` is False where it was cut at its length limit."""

    text: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """How many plans are wanted for a prompt."""

    prompt: Prompt
    count: int


class Planner(Protocol):
    """Explores: different short plans for a question."""

    def plans(self, requests: Sequence[PlanRequest], attempt: int) -> list[list[Draft]]:
        """Up to ``count`` plans for every request, in order; another ``attempt`` (0, 1, ...) draws others."""
        ...


class Executor(Protocol):
    """Executes: sees the question and the plan, and nothing else."""

    def executions(self, jobs: Sequence[tuple[Prompt, str]]) -> list[Draft]:
        """The one execution of every (prompt, plan), in order; the same for the same job."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A question with a plan and an execution that adheres to it."""

    prompt: Prompt
    plan: str
    execution: str

    def record(self) -> dict[str, Any]:
        """TRL's conversational prompt and completion."""
        return chat_record(self.prompt, compose(self.plan, self.execution))


@dataclass(frozen=True, slots=True)
class Entry:
    """One draft's fate. ``verdict`` is ``kept`` or the reason against it; ``detail`` says where."""

    question: str
    plan: str
    execution: str | None
    verdict: str
    detail: str
    attempt: int


@dataclass(slots=True)
class Ledger:
    """Every draft that was made, in order."""

    entries: list[Entry] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many drafts met which fate, the kept ones first."""
        counted = Counter(entry.verdict for entry in self.entries)
        return {KEPT: counted.pop(KEPT, 0), **dict(sorted(counted.items()))}

    def write(self, path: Path) -> None:
        write_atomically(path, "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in self.entries))


def chat_record(prompt: Prompt, answer: str) -> dict[str, Any]:
    """A prompt and its answer as TRL's conversational prompt-completion record."""
    return {
        "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
        "completion": [{"role": "assistant", "content": answer}],
    }


def build_examples(
    prompts: Iterable[Prompt],
    planner: Planner,
    executor: Executor,
    scorer: Scorer,
    *,
    plans_per_prompt: int,
    attempts: int,
    threshold: float = 1.0,
) -> tuple[list[Example], Ledger]:
    """Up to ``plans_per_prompt`` examples with different plans for every question, in the order of the prompts.

    An example is kept when its plan was not tried before, its execution adheres, and ``scorer`` gives the whole answer
    at least ``threshold``. Questions that still want examples are planned again, ``attempts`` times in all; executions
    are not, since they follow from their plan. A question that comes again is used once.
    """
    questions: dict[str, Prompt] = {}
    for prompt in prompts:
        questions.setdefault(question_of(prompt), prompt)
    kept: dict[str, list[Example]] = {question: [] for question in questions}
    tried: set[tuple[str, str]] = set()
    ledger = Ledger()
    for attempt in range(attempts):
        wanted = [PlanRequest(p, plans_per_prompt - len(kept[q])) for q, p in questions.items()]
        wanted = [request for request in wanted if request.count > 0]
        if not wanted:
            break
        jobs: list[tuple[Prompt, str]] = []
        for request, drafts in zip(wanted, planner.plans(wanted, attempt), strict=True):
            for draft in drafts:
                question = question_of(request.prompt)
                verdict = _plan_verdict(question, draft, tried)
                tried.add((question, _key(draft.text)))
                if verdict is None:
                    jobs.append((request.prompt, draft.text))
                else:
                    ledger.entries.append(Entry(question, draft.text, None, *verdict, attempt))
        executions = executor.executions(jobs) if jobs else []
        for (prompt, plan), execution in zip(jobs, executions, strict=True):
            question = question_of(prompt)
            verdict = _execution_verdict(prompt, plan, execution, scorer, threshold)
            ledger.entries.append(Entry(question, plan, execution.text, *(verdict or (KEPT, "")), attempt))
            if verdict is None:
                kept[question].append(Example(prompt, plan, execution.text))
    return [example for examples in kept.values() for example in examples], ledger


def _plan_verdict(question: str, draft: Draft, tried: set[tuple[str, str]]) -> tuple[str, str] | None:
    if not draft.whole:
        return "unfinished_plan", "cut at the length limit"
    if (question, _key(draft.text)) in tried:
        return "duplicate", "this plan of this question was tried before"
    broken = plan_violation(question, draft.text)
    return (str(broken.kind), broken.detail) if broken else None


def _execution_verdict(
    prompt: Prompt, plan: str, execution: Draft, scorer: Scorer, threshold: float
) -> tuple[str, str] | None:
    if not execution.whole:
        return "unfinished_execution", "cut at the length limit"
    broken = violation(question_of(prompt), plan, execution.text)
    if broken:
        return str(broken.kind), broken.detail
    answer = Completion((), (), compose(plan, execution.text), Finish.STOP, Origin.DATASET, 0)
    score = scorer.score([Rollout(prompt, (), (answer,))])[0][0]
    if isinstance(score, ScoreFailure):
        return "unscored", score.reason
    return None if score >= threshold else ("wrong_answer", f"the verifier gives {score:g}")


def _key(plan: str) -> str:
    return " ".join(plan.lower().rstrip(" .").split())


class Generator(Protocol):
    """The one method of an engine, or of its supervisor, that drafting needs."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]: ...


class PolicyDrafter:
    """Planner and executor that are one language model: plans sampled, executions greedy, as the paper has the phases.

    ``params`` are those of the plans; ``max_execution_tokens`` is the longest execution.
    """

    def __init__(
        self,
        engine: Generator,
        renderer: ChatRenderer,
        params: SamplingParams,
        *,
        max_execution_tokens: int,
        seed: int,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._params = params
        self._executing = replace(
            params, max_new_tokens=max_execution_tokens, temperature=0.0, top_p=1.0, top_k=0, min_new_tokens=0
        )
        self._seed = seed

    def plans(self, requests: Sequence[PlanRequest], attempt: int) -> list[list[Draft]]:
        asked = [
            Request(
                _plan_prompt(self._renderer, request.prompt),
                tuple(
                    request_seed(self._seed, f"plan:{request.prompt.id}", Origin.POLICY, i, attempt)
                    for i in range(request.count)
                ),
            )
            for request in requests
        ]
        drawn = self._engine.generate(asked, self._params)
        return [[self._draft(sample, PLAN, "; ") for sample in samples] for samples in drawn]

    def executions(self, jobs: Sequence[tuple[Prompt, str]]) -> list[Draft]:
        asked = [Request(_execution_prompt(self._renderer, prompt, plan), (0,)) for prompt, plan in jobs]
        drawn = self._engine.generate(asked, self._executing)
        return [self._draft(samples[0], EXECUTION, "\n") for samples in drawn]

    def _draft(self, sample: Sample, heading: str, joint: str) -> Draft:
        text = self._renderer.text(sample.token_ids).strip().removeprefix(heading)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return Draft(joint.join(lines), sample.finish is Finish.STOP)


def drafting_context(
    renderer: ChatRenderer, prompts: Iterable[Prompt], max_plan_tokens: int, max_execution_tokens: int
) -> int:
    """Tokens of the longest context that a :class:`PolicyDrafter` can need for these prompts."""
    return max(
        max(
            len(_plan_prompt(renderer, prompt)) + max_plan_tokens,
            # A plan may be split into other tokens when it stands in a prompt; twice as many is room enough.
            len(_execution_prompt(renderer, prompt, "")) + 2 * max_plan_tokens + max_execution_tokens,
        )
        for prompt in prompts
    )


def _plan_prompt(renderer: ChatRenderer, prompt: Prompt) -> tuple[int, ...]:
    return _prompt_ids(renderer, prompt, _ASK_FOR_A_PLAN.format(question=question_of(prompt)))


def _execution_prompt(renderer: ChatRenderer, prompt: Prompt, plan: str) -> tuple[int, ...]:
    return _prompt_ids(renderer, prompt, _ASK_FOR_THE_EXECUTION.format(question=question_of(prompt), plan=plan))


def _prompt_ids(renderer: ChatRenderer, prompt: Prompt, text: str) -> tuple[int, ...]:
    """The prompt with ``text`` in place of its last message."""
    *before, last = prompt.messages
    return renderer.prompt_ids(Prompt(prompt.id, (*before, Message(last.role, text))))
