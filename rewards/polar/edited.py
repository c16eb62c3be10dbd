"""Ranked triples whose two sides are one sample, once with the right final number and once with a wrong one.

Samples of policies that are right differ from those that are wrong in manner too. A discriminator that is fine-tuned on
nothing else learns the manner; here nothing but the number tells the two apart.
"""

import random
import re
from collections.abc import Sequence
from itertools import islice

from rewards.polar.types import Triple
from rewards.verifiers import extract_answer
from rollouts.types import Prompt, Rollout

LARGEST_ERROR = 10
_NUMBER = re.compile(r"(?<![\d.,])-?\d+(?![\d.,]*\d)")


def edited_triples(
    rollouts: Sequence[Rollout], *, per_prompt: int, seed: int, policies: Sequence[str] | None = None
) -> list[Triple]:
    """At most ``per_prompt`` triples for each prompt whose answer is a whole number and that has a worked answer.

    The reference is the worked answer. A sample that ends in the right number is chosen, and rejected with its last
    number changed by 1 to :data:`LARGEST_ERROR`; a sample that ends in a wrong one is rejected, and chosen with its
    last number put right. Samples are drawn with ``seed``, the same ones for the same input; a text without a number,
    and a copy of the worked answer, take no part. ``policies`` names the policy of each rollout.
    """
    by_prompt: dict[str, tuple[Prompt, dict[str, str]]] = {}
    for index, rollout in enumerate(rollouts):
        prompt = rollout.prompt
        if prompt.reference is None or not re.fullmatch(r"-?\d+", prompt.answer or ""):
            continue
        _, texts = by_prompt.setdefault(prompt.id, (prompt, {}))
        for completion in rollout.completions:
            text = completion.text.strip()
            if text != prompt.reference.strip() and _last_number(text):
                texts.setdefault(text, policies[index] if policies is not None else "")
    triples: list[Triple] = []
    for id, (prompt, texts) in by_prompt.items():
        rng = random.Random(f"{seed}:{id}")
        order = rng.sample(sorted(texts), len(texts))
        made = (_triple(prompt, text, texts[text], rng) for text in order)
        triples += islice((triple for triple in made if triple is not None), per_prompt)
    return triples


def _triple(prompt: Prompt, text: str, policy: str, rng: random.Random) -> Triple | None:
    """None where the verifier would read the edited text otherwise: ``0 -1`` is a subtraction, and not minus one."""
    assert prompt.answer is not None and prompt.reference is not None, "selected above"
    right = int(prompt.answer)
    place = _last_number(text)
    assert place is not None, "selected above"
    start, end = place
    if int(text[start:end]) == right:
        wrong = right + rng.choice([error for error in range(-LARGEST_ERROR, LARGEST_ERROR + 1) if error])
        chosen, rejected, edited = text, f"{text[:start]}{wrong}{text[end:]}", "rejected"
    else:
        chosen, rejected, edited = f"{text[:start]}{right}{text[end:]}", text, "chosen"
    if extract_answer(chosen, "1") != str(right) or extract_answer(rejected, "1") == str(right):
        return None
    metadata = {"id": prompt.id, "edited": edited, **({"policy": policy} if policy else {})}
    return Triple(prompt.messages, prompt.reference, chosen, rejected, "sft", metadata)


def _last_number(text: str) -> tuple[int, int] | None:
    """Where the last whole number stands. A minus behind a digit is a subtraction, and no sign."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    start, end = found[-1].span()
    if text[start] == "-" and text[:start].rstrip()[-1:].isdigit():
        start += 1
    return start, end
