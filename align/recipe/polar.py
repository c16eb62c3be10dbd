"""The recipes of policy discriminators (POLAR, arXiv 2507.05197): corpus, training, scaling law."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.recipe.base import KeyPath, Section, refuse
from align.recipe.learning import LoRAAdapter
from align.recipe.rollout import Engine, PromptSource
from align.recipe.running import Cluster, Common, LocalCluster


class Policy(Section):
    """One policy of the pool: a model with its own checkpoint, system prompt, sampling settings or adapter."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What it is called in the corpus and on its card."""
    model: str = Field(min_length=1)
    """Where the weights are: a folder, `hub:ORG/NAME`, or `pkg:PACKAGE/FILE.gguf`."""
    mode: Literal["chat", "base"] = "chat"
    """`chat` answers prompts through its chat template; `base` continues text. Pairs never mix the two."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder of a PEFT adapter that is merged into the model."""
    system_prompt: str | None = None
    """A system message before every prompt: part of the policy, not of the prompt that the discriminator sees."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature (the paper's value; lower ones give too little contrast)."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample from the smallest set of tokens with this total probability."""
    top_k: int = Field(default=50, ge=0)
    """Sample from so many most likely tokens; 0 switches it off."""
    heldout: bool = False
    """Never in training: for the split of held-out policies alone."""


class JsonlTexts(Section):
    """Texts from a file with one JSON object a line."""

    type: Literal["jsonl"]
    """A file with one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    field: str = Field(default="text", min_length=1)
    """Field with the text."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many texts; all by default."""


class HubTexts(Section):
    """Texts from a data set of the Hugging Face hub, streamed."""

    type: Literal["hub"]
    """A data set of the Hugging Face hub."""
    name: str = Field(min_length=1)
    """The data set, as `ORG/NAME`."""
    split: str = Field(default="train", min_length=1)
    """Split of the data set."""
    field: str = Field(default="text", min_length=1)
    """Field with the text."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many texts; all by default."""


class FileTexts(Section):
    """A text file, cut into passages at paragraph ends."""

    type: Literal["file"]
    """A text file, cut into passages at paragraph ends."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory, or `pkg:PACKAGE/FILE.txt` inside an installed package."""
    passage_chars: int = Field(default=1200, gt=0)
    """Least length of a passage, in characters."""
    size: int | None = Field(default=None, gt=0)
    """Use the first so many passages; all by default."""


TextSource = Annotated[JsonlTexts | HubTexts | FileTexts, Field(discriminator="type")]


class Pairing(Section):
    """How samples become triples. Negatives are matched in mode and length, so that length cannot win."""

    positives_per_prompt: int = Field(default=3, ge=2)
    """Samples of policy A, of which one is the reference and one the positive."""
    negatives_per_prompt: int = Field(default=4, ge=1)
    """Samples of policy B, of which one is the negative."""
    max_new_tokens: int = Field(default=4096, gt=0)
    """Longest sample, in tokens (the paper's value)."""
    prefix_tokens: Annotated[tuple[int, int], Field(strict=False)] = (1, 1024)
    """Least and most tokens of a prefix of a text (the paper's values); its length is uniform between them."""
    length_tolerance: float = Field(default=0.2, ge=0, lt=1)
    """Largest difference in length between positive and negative, as a share of the longer one."""


class Splits(Section):
    """What is kept out of training."""

    validation: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts for validation, answered by the policies of training."""
    heldout_policies: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts for pairs with a held-out policy in them."""


class Ranked(Section):
    """Triples for fine-tuning, made of the same samples where prompts have answers.

    The reference is the prompt's worked answer, chosen a right sample and rejected a wrong one of similar length.
    """

    per_prompt: int = Field(default=2, gt=0)
    """Most triples of one prompt."""
    edited_per_prompt: int = Field(default=0, ge=0)
    """Most further triples of one prompt, whose two sides are one sample with the right and with a wrong final number:
    nothing but the number tells them apart."""


class PolarCorpusRecipe(Common):
    """Everything that defines a corpus for policy discriminators."""

    kind: Literal["polar_corpus"]
    """A corpus for policy discriminators."""
    policies: Annotated[tuple[Policy, ...], Field(strict=False, min_length=2)]
    """The pool."""
    prompts: Annotated[tuple[PromptSource, ...], Field(strict=False)] = ()
    """Prompts that the chat policies answer."""
    exclude: Annotated[tuple[PromptSource, ...], Field(strict=False)] = ()
    """Prompts that must not occur, by their text: what policies will be evaluated on."""
    texts: Annotated[tuple[TextSource, ...], Field(strict=False)] = ()
    """Texts whose prefixes the base policies continue."""
    pairs: Pairing = Field(default_factory=Pairing)
    """How samples become triples."""
    splits: Splits = Field(default_factory=Splits)
    """What is kept out of training."""
    ranked: Ranked | None = None
    """Triples for fine-tuning from the same samples; left out by default."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of generation."""
    engine: Engine
    """What generates."""
    tokenizer: str | None = Field(default=None, min_length=1)
    """The model whose tokenizer cuts prefixes and measures all lengths; the first policy's by default."""
    chunk_prompts: int = Field(default=64, gt=0)
    """Prompts of one policy that are sampled in one go: what a kill can lose at most."""
    cluster: Cluster = Field(default_factory=lambda: LocalCluster(type="local"))
    """Where the engine lives."""

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        refuse(_corpus_conflicts(self))
        return self


def _corpus_conflicts(recipe: PolarCorpusRecipe) -> Iterator[tuple[KeyPath, str]]:
    names = Counter(policy.name for policy in recipe.policies)
    for name, count in names.items():
        if count > 1:
            yield ("policies",), f"{count} policies are called '{name}'; names must differ"
    if not recipe.prompts and not recipe.texts:
        yield ("prompts",), "missing, and texts too: there is nothing to answer or to continue"
    for sources, mode in ((recipe.prompts, "chat"), (recipe.texts, "base")):
        seen = [policy for policy in recipe.policies if policy.mode == mode and not policy.heldout]
        if sources and len(seen) < 2:
            kind = "prompts" if mode == "chat" else "texts"
            yield (
                ("policies",),
                f"{kind} need two policies of mode '{mode}' that are not held out, there are {len(seen)}",
            )
    if recipe.splits.validation + recipe.splits.heldout_policies >= 1:
        yield ("splits", "validation"), "with splits.heldout_policies leaves no prompts to train on"
    heldout = any(policy.heldout for policy in recipe.policies)
    if recipe.splits.heldout_policies and not heldout:
        yield ("splits", "heldout_policies"), "no policy has heldout: true; mark one, or set it to 0"
    if heldout and not recipe.splits.heldout_policies:
        yield ("splits", "heldout_policies"), "0, and a policy has heldout: true: nothing would be drawn of it"
    for index, policy in enumerate(recipe.policies):
        if policy.mode == "base" and policy.system_prompt:
            yield ("policies", index, "system_prompt"), "a base policy has none; use mode chat, or leave it out"
    low, high = recipe.pairs.prefix_tokens
    if not 1 <= low <= high:
        yield ("pairs", "prefix_tokens"), f"must be a range of at least 1 token, got {low} to {high}"
    if recipe.pairs.max_new_tokens >= recipe.engine.max_context:
        yield (
            ("pairs", "max_new_tokens"),
            f"{recipe.pairs.max_new_tokens} leaves no room for a prompt in engine.max_context "
            f"({recipe.engine.max_context})",
        )


class PolarBackbone(Section):
    """What is trained: a causal backbone that gets a scalar head, or a POLAR model that already has one."""

    path: str = Field(min_length=1)
    """A folder, `hub:ORG/NAME`, `pkg:PACKAGE/FILE.gguf`, or `polar:NAME` for one that comes with Polestar."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder of an adapter that was trained on this backbone, to go on with: two trainings then make one adapter."""
    layers: int | None = Field(default=None, gt=0)
    """Keep the first so many layers of a backbone; all by default."""
    max_length: int = Field(default=16384, gt=0)
    """Longest sequence, in tokens; not more than the backbone's positions."""
    max_response_length: int = Field(default=4096, gt=0)
    """Longest reference and candidate, in tokens: the rest is cut off."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """`bfloat16` is mixed precision; the optimizer's weights are float32."""


class CorpusTriples(Section):
    """Triples of a corpus that a recipe of kind `polar_corpus` has made."""

    type: Literal["corpus"]
    """A corpus made by a recipe of kind `polar_corpus`."""
    path: str = Field(min_length=1)
    """Its run folder."""
    size: int | None = Field(default=None, gt=0)
    """Use so many triples of the training split; all by default."""


class JsonlTriples(Section):
    """Ranked triples in the format of POLAR's public code: `prompt`, `reference`, `chosen`, `rejected`."""

    type: Literal["jsonl"]
    """A file with one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    validation: str = Field(min_length=1)
    """A second such file, for validation: of other prompts."""
    size: int | None = Field(default=None, gt=0)
    """Use so many triples; all by default."""


Triples = Annotated[CorpusTriples | JsonlTriples, Field(discriminator="type")]


class PolarTraining(Section):
    """The training, by TRL's `RewardTrainer`; `auto` is the paper's fit, in the units of docstrings."""

    lr: float | Literal["auto"] = "auto"
    """Peak learning rate; `auto` is the paper's fit on model size and data, for training of all weights."""
    batch_size: int | Literal["auto"] = "auto"
    """Pairs of one update; `auto` is the paper's fit."""
    backbone_tokens: float | None = Field(default=None, gt=0)
    """Tokens that the backbone was pre-trained on, which `lr: auto` needs (SmolLM2-135M: 2e12)."""
    micro_batch_size: int = Field(default=4, gt=0)
    """Pairs of one forward and backward pass; must divide `batch_size`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs; the authors warn of more than one."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from zero."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    lora: LoRAAdapter | None = None
    """Train a low-rank update, the head and the two new tokens; all weights by default."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    log_every: int = Field(default=10, gt=0)
    """Updates between two lines of metrics."""
    evaluate_every: int = Field(default=0, ge=0)
    """Updates between two validations; there is one before and one after training in any case."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Updates between two checkpoints, a multiple of `log_every`; 0 keeps none."""
    validation_size: int | None = Field(default=None, gt=0)
    """Use the first so many validation pairs; all by default."""


class Trained(Common):
    """What recipes that train policy discriminators share."""

    model: PolarBackbone
    """What is trained."""
    data: Triples
    """What it is trained on."""
    training: PolarTraining = Field(default_factory=PolarTraining)
    """The training, by TRL's `RewardTrainer`."""

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        refuse(chain(_training_conflicts(self.training), self._conflicts()))
        return self

    def _conflicts(self) -> Iterator[tuple[KeyPath, str]]:
        """What else of a kind does not go together."""
        yield from ()


class PolarRecipe(Trained):
    """Everything that defines the training of a policy discriminator: pre-training or fine-tuning, by its data."""

    kind: Literal["polar"]
    """Trains a policy discriminator."""

    def _conflicts(self) -> Iterator[tuple[KeyPath, str]]:
        if self.model.adapter is not None and self.training.lora is None:
            yield ("training", "lora"), "missing, and model.adapter is a low-rank update: give its settings"


class PolarScalingRecipe(Trained):
    """Everything that defines a scaling law: the same training for several sizes of a backbone."""

    kind: Literal["polar_scaling"]
    """Trains a policy discriminator of several sizes, and fits power laws to their validation losses."""
    sizes: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False, min_length=2)]
    """Layers of each size: the first so many of the backbone's."""

    def _conflicts(self) -> Iterator[tuple[KeyPath, str]]:
        if len(set(self.sizes)) < len(self.sizes):
            yield ("sizes",), "two sizes are the same"
        if self.model.layers is not None:
            yield ("model", "layers"), "is what sizes are for"
        if self.model.adapter is not None:
            yield ("model", "adapter"), "fits one size alone"


def _training_conflicts(training: PolarTraining) -> Iterator[tuple[KeyPath, str]]:
    size = training.batch_size
    if size != "auto" and size % training.micro_batch_size:
        yield (
            ("training", "batch_size"),
            f"must be a multiple of training.micro_batch_size ({training.micro_batch_size})",
        )
    for key in ("lr", "batch_size"):
        value = getattr(training, key)
        if value != "auto" and not value > 0:
            yield ("training", key), f"must be more than 0, or auto, got {value}"
    if training.lr == "auto":
        if training.lora is not None:
            yield ("training", "lr"), "'auto' was fitted to training of all weights: give a number with lora"
        elif training.backbone_tokens is None:
            yield ("training", "backbone_tokens"), "missing, and lr 'auto' needs it; or give lr a number"
    if training.checkpoint_every % training.log_every:
        yield ("training", "checkpoint_every"), f"must be a multiple of training.log_every ({training.log_every})"
