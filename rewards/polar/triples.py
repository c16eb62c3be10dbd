"""Ranked triples for fine-tuning: POLAR's public JSON-lines format, and triples made of tasks with known answers.

A line of the format, as InternLM/POLAR and xtuner read it, with an optional ``"wrapper"``::

    {"prompt": [messages], "reference": [messages], "chosen": [messages], "rejected": [messages]}
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from rewards.polar.files import whole_file
from rewards.polar.types import PolarError, Triple, Turns, Wrapper
from rewards.types import ScoreFailure, Scorer
from rewards.verifiers import VerifierScorer
from rollouts.prompts import PromptError, jsonl_lines
from rollouts.types import Completion, Message, Prompt, Rollout

TEXTS = ("prompt", "reference", "chosen", "rejected")
_WRAPPERS = get_args(Wrapper)
_RIGHT, _WRONG = 1.0, 0.5


def read_triples(path: Path) -> list[Triple]:
    """The triples of a JSON-lines file. The four fields are strings, taken as they are, or lists of messages with
    ``role`` and ``content``; other keys become metadata where their values are strings.

    Raises :class:`PolarError` naming file, line and field.
    """
    try:
        triples = [_triple(line.record, f"{path}:{line.number}") for line in jsonl_lines(path)]
    except PromptError as error:
        raise PolarError(str(error)) from error
    if not triples:
        raise PolarError(f"{path}: holds no triples")
    return triples


def write_triples(path: Path, triples: Iterable[Triple]) -> None:
    """Writes triples a line each, the whole file or none of it; :func:`read_triples` gives equal ones back.

    Raises :class:`PolarError` when metadata carry the name of a field.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for triple in triples:
            file.write(json.dumps(_record(triple), ensure_ascii=False) + "\n")


def _triple(record: Mapping[str, Any], where: str) -> Triple:
    if missing := [name for name in TEXTS if name not in record]:
        has = ", ".join(map(str, record)) or "none"
        raise PolarError(f"{where}: no field {missing[0]!r} (its fields: {has})")
    wrapper = record.get("wrapper", "sft")
    if wrapper not in _WRAPPERS:
        raise PolarError(f"{where}, field 'wrapper': must be one of {', '.join(_WRAPPERS)}, not {wrapper!r}")
    prompt, reference, chosen, rejected = (_turns(record[name], f"{where}, field {name!r}") for name in TEXTS)
    extra = {k: v for k, v in record.items() if k not in TEXTS and k != "wrapper" and isinstance(v, str)}
    return Triple(prompt, reference, chosen, rejected, wrapper, extra)


def _turns(raw: Any, where: str) -> Turns:
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list) or not raw:
        raise PolarError(f"{where}: expected text or a list of messages with role and content")
    for number, message in enumerate(raw, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise PolarError(f"{where}: message {number} needs role and content, both text")
    return tuple(Message(message["role"], message["content"]) for message in raw)


def _record(triple: Triple) -> dict[str, Any]:
    if taken := sorted({*TEXTS, "wrapper"} & triple.metadata.keys()):
        raise PolarError(f"a triple's metadata cannot be called {taken[0]!r}: that is a field of the format")
    record: dict[str, Any] = {name: _plain(getattr(triple, name)) for name in TEXTS}
    return {**record, "wrapper": triple.wrapper, **triple.metadata}


def _plain(turns: Turns) -> str | list[dict[str, str]]:
    return turns if isinstance(turns, str) else [{"role": m.role, "content": m.content} for m in turns]


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    policy: str


def answer_triples(
    rollouts: Sequence[Rollout],
    *,
    per_prompt: int = 1,
    policies: Sequence[str] | None = None,
    verifier: Scorer | None = None,
) -> tuple[list[Triple], dict[str, int]]:
    """Fine-tuning triples of tasks with known answers: the worked answer, a right completion and a wrong one.

    ``policies`` names the policy of each rollout; without it a completion's origin and version tell policies apart.
    Rollouts of one prompt (by id) are taken together. Pairs of one policy come before pairs of two, so that the answer
    is what differs, and then those closest in length (characters): at most ``per_prompt`` of a prompt, and no text
    twice. ``verifier`` (default :class:`rewards.verifiers.VerifierScorer`) tells right (1) from wrong (below 1/2);
    partial credit between, a failed check, an empty text and a copy of the worked answer take no part.

    Also returns the counts of prompts with ``triples``, with ``no_reference``, with ``no_right`` and with ``no_wrong``
    answer; every prompt is in one of them.
    """
    if policies is not None and len(policies) != len(rollouts):
        raise ValueError(f"{len(policies)} policies were named for {len(rollouts)} rollouts")
    if per_prompt < 1:
        raise ValueError(f"per_prompt must be at least 1, not {per_prompt}")
    scores = (verifier or VerifierScorer()).score(rollouts)
    prompts: dict[str, Prompt] = {}
    right: dict[str, dict[str, _Answer]] = {}
    wrong: dict[str, dict[str, _Answer]] = {}
    for index, (rollout, row) in enumerate(zip(rollouts, scores, strict=True)):
        prompt = prompts.setdefault(rollout.prompt.id, rollout.prompt)
        for completion, score in zip(rollout.completions, row, strict=True):
            text = completion.text.strip()
            if isinstance(score, ScoreFailure) or text in ("", (prompt.reference or "").strip()):
                continue
            side = right if score >= _RIGHT else wrong if score < _WRONG else None
            if side is not None:
                policy = policies[index] if policies is not None else _policy(completion)
                side.setdefault(prompt.id, {}).setdefault(text, _Answer(text, policy))
    ledger = Counter(triples=0, no_reference=0, no_right=0, no_wrong=0)
    triples: list[Triple] = []
    for id, prompt in prompts.items():
        made = _of_prompt(prompt, list(right.get(id, {}).values()), list(wrong.get(id, {}).values()), per_prompt)
        if prompt.reference is None:
            ledger["no_reference"] += 1
        elif made:
            ledger["triples"] += 1
        else:
            ledger["no_right" if id not in right else "no_wrong"] += 1
        triples += made
    return triples, dict(ledger)


def _policy(completion: Completion) -> str:
    return f"{completion.origin}:{completion.policy_version}"


def _of_prompt(prompt: Prompt, right: list[_Answer], wrong: list[_Answer], most: int) -> list[Triple]:
    if prompt.reference is None:
        return []
    pairs = sorted(
        product(right, wrong),
        key=lambda pair: (pair[0].policy != pair[1].policy, abs(len(pair[0].text) - len(pair[1].text))),
    )
    made: list[Triple] = []
    used: set[str] = set()
    for chosen, rejected in pairs:
        if len(made) == most:
            break
        if used & {chosen.text, rejected.text}:
            continue
        used |= {chosen.text, rejected.text}
        metadata = {"id": prompt.id, "policy_chosen": chosen.policy, "policy_rejected": rejected.policy}
        made.append(Triple(prompt.messages, prompt.reference, chosen.text, rejected.text, "sft", metadata))
    return made
