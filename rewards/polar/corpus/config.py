"""What a corpus is made of: the pool of policies, and the numbers of the recipe."""

from dataclasses import dataclass
from typing import Literal

from rewards.polar.types import PolarError, Wrapper

Mode = Literal["base", "chat"]
"""``base`` continues a text without a chat template; ``chat`` answers an instruction through the model's template."""

Split = Literal["train", "validation", "heldout_policies"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout_policies")

WRAPPERS: dict[Mode, Wrapper] = {"base": "pretrain", "chat": "sft"}


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One policy of the pool: a model, how it is asked and how it is sampled.

    ``model`` is a name for :func:`rollouts.models.resolve`; ``adapter`` a folder with a PEFT adapter of it. Policies
    may share a model and differ in the rest. The sampling defaults are the paper's: a lower temperature leaves too
    little contrast between policies, a higher one says too little about them. A ``heldout`` policy never occurs outside
    the split ``heldout_policies``.
    """

    name: str
    model: str
    mode: Mode
    system_prompt: str | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50
    adapter: str | None = None
    heldout: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise PolarError(f"a policy of model {self.model!r} has no name: give it one")
        if self.mode == "base" and self.system_prompt:
            raise PolarError(f"policy {self.name!r}: a base policy has no system prompt: use mode chat or leave it out")
        if not self.temperature > 0:
            raise PolarError(f"policy {self.name!r}: temperature must be above 0: greedy samples would be identical")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise PolarError(f"policy {self.name!r}: top_p must be in (0, 1], and top_k at least 0 (0: off)")

    @property
    def weights(self) -> tuple[str, str | None]:
        """Policies of equal weights are served by one engine."""
        return self.model, self.adapter


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """When the end of a text is a repetition loop, and what is left of it.

    A loop is a unit of at most ``max_period`` characters that fills the end of the text at least ``min_repeats`` times
    and over at least ``min_chars`` characters; the last repetition may be cut. ``keep`` repetitions remain, so that it
    can still be seen that the policy loops, and not for how long it was let.
    """

    max_period: int = 512
    min_repeats: int = 5
    min_chars: int = 60
    keep: int = 3

    def __post_init__(self) -> None:
        if not (1 <= self.keep < self.min_repeats and self.max_period >= 1):
            raise PolarError("loops: keep must be at least 1 and below min_repeats, and max_period at least 1")


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """How a corpus is made; a folder holds one corpus of one configuration.

    - ``tokenizer``: the model whose tokenizer cuts prefixes and measures all lengths, so that lengths of different
      policies can be compared. ``prefix_tokens``: shortest and longest prefix of a text; at least one token remains.
    - ``positives_per_prompt`` samples are drawn of policy A and ``negatives_per_prompt`` of policy B, of at most
      ``max_new_tokens`` tokens of their own models; three of them become the triple. More of them make better matches.
    - ``length_tolerance``: chosen and rejected differ in length by at most this share of the longer one.
    - ``validation_share`` and ``heldout_share`` of the prompts go to the splits ``validation`` and
      ``heldout_policies``. In the latter at least one policy of every triple is a held-out one.
    - ``chunk_prompts`` are sampled of one policy in one call, which is what a kill can lose; ``shard_rows`` triples are
      stored in a file; ``embedded_triples`` of each split are given to the embedder of the data card.
    """

    policies: tuple[PolicySpec, ...]
    tokenizer: str
    seed: int = 0
    max_new_tokens: int = 4096
    prefix_tokens: tuple[int, int] = (1, 1024)
    positives_per_prompt: int = 3
    negatives_per_prompt: int = 4
    length_tolerance: float = 0.2
    validation_share: float = 0.05
    heldout_share: float = 0.05
    loops: LoopConfig = LoopConfig()
    chunk_prompts: int = 64
    shard_rows: int = 10_000
    embedded_triples: int = 2000

    def __post_init__(self) -> None:
        names = [policy.name for policy in self.policies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PolarError(f"two policies are called {twice[0]!r}: give every policy its own name")
        if not 1 <= self.prefix_tokens[0] <= self.prefix_tokens[1]:
            raise PolarError(f"prefix_tokens must be two numbers, 1 <= shortest <= longest, not {self.prefix_tokens}")
        if self.positives_per_prompt < 2 or self.negatives_per_prompt < 1:
            raise PolarError("a triple needs positives_per_prompt of at least 2 and negatives_per_prompt of at least 1")
        if not 0 <= self.length_tolerance < 1:
            raise PolarError(f"length_tolerance must be in [0, 1), not {self.length_tolerance}")
        if min(self.validation_share, self.heldout_share) < 0 or self.validation_share + self.heldout_share >= 1:
            raise PolarError("validation_share and heldout_share must be at least 0, and together below 1")
        if min(self.chunk_prompts, self.shard_rows, self.max_new_tokens, self.embedded_triples) < 1:
            raise PolarError("chunk_prompts, shard_rows, max_new_tokens and embedded_triples must be at least 1")
        heldout = [policy.name for policy in self.policies if policy.heldout]
        if heldout and not self.heldout_share:
            raise PolarError(f"policy {heldout[0]!r} is held out, but heldout_share is 0: nothing would be drawn of it")
        if self.heldout_share and not heldout:
            raise PolarError("no policy is held out: mark some with heldout: true, or set heldout_share to 0")
