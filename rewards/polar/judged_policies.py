"""Triples from prompts that several policies answered and a judge compared with a baseline's answer.

The form is that of AlpacaEval's outputs with their annotations, one JSON object a line, gzipped or not::

    {"prompt": "...", "baseline": {"policy": "...", "text": "..."},
     "responses": [{"policy": "...", "text": "...", "preference": 0.03}, ...]}

``preference`` is the judge's probability that the response is better than the baseline. AlpacaEval's data are CC BY-NC
4.0: for research only. There is one answer of each policy to a prompt, so triples of pre-training (two samples of one
policy, one of another) cannot be made of them.
"""

import gzip
import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, TextIO

from rewards.polar.prompt_categories import category_of
from rewards.polar.types import PolarError, Triple

RESOLUTION = 1e-8
"""Preferences nearer to 0 or 1 are taken as this far away: what the judge's probabilities resolve."""


@dataclass(frozen=True, slots=True)
class Response:
    """A policy's answer; ``preference`` over the baseline, 1/2 for the baseline itself."""

    policy: str
    text: str
    preference: float = 0.5

    @property
    def log_odds(self) -> float:
        """Of the preference, in nats: where nearly every answer loses, 0.01 is still far above 0.0001."""
        kept = min(max(self.preference, RESOLUTION), 1 - RESOLUTION)
        return math.log(kept / (1 - kept))


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    """A prompt, the baseline's answer, and those of the policies."""

    prompt: str
    baseline: Response
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class TripleConfig:
    """Which triples are made.

    ``reference``: ``baseline``, with candidates that the judge finds worse; ``best``, the best-judged of the baseline
    and the policies allowed here, with candidates below it. Chosen is judged at least ``margin`` (nats of log-odds)
    above rejected. At most ``per_prompt`` triples of a prompt, drawn at random. Blank answers, and copies of the
    reference, are no candidates.

    ``length``: judges like length, so ``balanced`` takes triples by twos, chosen the longer candidate (characters) in
    one and the shorter in the other, their ratios of length as near as the prompt's answers allow: a rule by length is
    then right as often as a coin, in each prompt. ``per_prompt`` must be even, and prompts without such twos give none.
    ``max_length_ratio``, of the longer candidate to the shorter, keeps differences small besides.

    ``split`` is by the prompt's hash, ``test_share`` of them for test. As many policies as ``held_out`` says, picked by
    hash, are never in train; ``policies``: candidates are of those ``seen`` in train, ``held_out`` alone, or ``all``.
    ``seed`` decides the draws, the split and the policies held out.
    """

    reference: Literal["baseline", "best"] = "baseline"
    margin: float = 2.0
    per_prompt: int = 2
    length: Literal["any", "balanced"] = "any"
    max_length_ratio: float = math.inf
    split: Literal["all", "train", "test"] = "all"
    test_share: float = 0.3
    held_out: int = 0
    policies: Literal["seen", "held_out", "all"] = "seen"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise PolarError(f"margin must be above 0, got {self.margin}")
        if self.per_prompt < 1:
            raise PolarError(f"per_prompt must be at least 1, got {self.per_prompt}")
        if self.length == "balanced" and self.per_prompt % 2:
            raise PolarError(f"per_prompt must be even where length is balanced, got {self.per_prompt}")
        if not self.max_length_ratio >= 1:
            raise PolarError(f"max_length_ratio must be at least 1, got {self.max_length_ratio}")
        if not 0 < self.test_share < 1:
            raise PolarError(f"test_share must be between 0 and 1, got {self.test_share}")
        if self.held_out < 0:
            raise PolarError(f"held_out must be at least 0, got {self.held_out}")
        if self.split == "train" and self.held_out and self.policies != "seen":
            raise PolarError("policies held out are never in train: use policies 'seen' with split 'train'")


def read_judged(path: Path | str) -> list[JudgedPrompt]:
    """The prompts of a file. Raises :class:`PolarError` naming the line that is not of the form."""
    path = Path(path)
    try:
        with _opened(path) as lines:
            return [_judged(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise PolarError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def held_out_policies(prompts: Iterable[JudgedPrompt], count: int, seed: int = 0) -> frozenset[str]:
    """The ``count`` policies, baselines aside, that are held out under ``seed``.

    Raises :class:`PolarError` when fewer than two would be left.
    """
    names = {response.policy for prompt in prompts for response in prompt.responses}
    if count and len(names) - count < 2:
        raise PolarError(f"{count} of {len(names)} policies cannot be held out: at least two must be left")
    return frozenset(sorted(names, key=lambda name: _hash(seed, "policy", name))[:count])


def judged_triples(prompts: Sequence[JudgedPrompt], config: TripleConfig | None = None) -> list[Triple]:
    """The triples of ``prompts`` under ``config``, in the order of the prompts.

    ``metadata``: ``category`` (:func:`rewards.polar.prompt_categories.category_of`, a heuristic), ``reference_policy``,
    ``chosen_policy``, ``rejected_policy``, and ``judge_margin`` in nats.
    """
    config = config or TripleConfig()
    held_out = held_out_policies(prompts, config.held_out, config.seed)
    made: list[Triple] = []
    for prompt in prompts:
        if not _in_split(prompt.prompt, config):
            continue
        allowed = [r for r in prompt.responses if r.text.strip() and _allowed(r.policy, held_out, config)]
        reference = max([prompt.baseline, *allowed], key=lambda r: r.log_odds)
        if config.reference == "baseline":
            reference = prompt.baseline
        below = [r for r in allowed if r.log_odds < reference.log_odds and r.text != reference.text]
        made += [_triple(prompt, reference, *pair) for pair in _drawn(prompt.prompt, below, config)]
    return made


def _allowed(policy: str, held_out: frozenset[str], config: TripleConfig) -> bool:
    return config.policies == "all" or (policy in held_out) == (config.policies == "held_out")


def _in_split(prompt: str, config: TripleConfig) -> bool:
    if config.split == "all":
        return True
    return (_hash(config.seed, "prompt", prompt) < config.test_share) == (config.split == "test")


def _drawn(prompt: str, candidates: Sequence[Response], config: TripleConfig) -> list[tuple[Response, Response]]:
    """Chosen and rejected, at most ``per_prompt`` times."""
    rng = random.Random(f"{config.seed}:{prompt}")
    pairs = [pair for pair in permutations(candidates, 2) if _is_pair(*pair, config)]
    rng.shuffle(pairs)
    if config.length == "any":
        return pairs[: config.per_prompt]
    longer = [pair for pair in pairs if _length_ratio(*pair) > 1]
    shorter = [pair for pair in pairs if _length_ratio(*pair) < 1]
    drawn: list[tuple[Response, Response]] = []
    # Matched in size, not in sign alone: else "longer wins, unless by little" would still be a rule that works.
    for pair in longer[: config.per_prompt // 2]:
        if shorter:
            drawn += [pair, shorter.pop(_nearest(shorter, 1 / _length_ratio(*pair)))]
    return drawn


def _nearest(pairs: Sequence[tuple[Response, Response]], ratio: float) -> int:
    return min(range(len(pairs)), key=lambda i: abs(math.log(_length_ratio(*pairs[i]) / ratio)))


def _is_pair(chosen: Response, rejected: Response, config: TripleConfig) -> bool:
    short, long = sorted((len(chosen.text), len(rejected.text)))
    far = chosen.log_odds - rejected.log_odds >= config.margin
    return far and chosen.text != rejected.text and long <= config.max_length_ratio * short


def _length_ratio(chosen: Response, rejected: Response) -> float:
    return len(chosen.text) / len(rejected.text)


def _triple(prompt: JudgedPrompt, reference: Response, chosen: Response, rejected: Response) -> Triple:
    metadata = {
        "category": category_of(prompt.prompt),
        "reference_policy": reference.policy,
        "chosen_policy": chosen.policy,
        "rejected_policy": rejected.policy,
        "judge_margin": f"{chosen.log_odds - rejected.log_odds:.4f}",
    }
    return Triple(prompt.prompt, reference.text, chosen.text, rejected.text, metadata=metadata)


def _hash(seed: int, kind: str, text: str) -> float:
    """A number in [0, 1) that depends on nothing else, so that a prompt keeps its side when others come or go."""
    digest = hashlib.sha256(f"{seed}:{kind}:{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _opened(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _judged(line: str, where: str) -> JudgedPrompt:
    try:
        record = json.loads(line)
        baseline = Response(*_texts(record["baseline"]))
        responses = tuple(_responses(record["responses"]))
        prompt = record["prompt"]
    except (KeyError, TypeError, ValueError) as error:
        raise PolarError(f"{where}: no judged prompt ({type(error).__name__}: {error})") from error
    if not isinstance(prompt, str):
        raise PolarError(f"{where}: the prompt is no text")
    return JudgedPrompt(prompt, baseline, responses)


def _responses(records: Sequence[Any]) -> Iterator[Response]:
    for record in records:
        preference = float(record["preference"])
        if not 0 <= preference <= 1:
            raise ValueError(f"a preference of {preference} is not between 0 and 1")
        yield Response(*_texts(record), preference)


def _texts(record: Any) -> tuple[str, str]:
    policy, text = record["policy"], record["text"]
    if not isinstance(policy, str) or not isinstance(text, str):
        raise TypeError("policy and text must be texts")
    return policy, text
