"""Sections about judgement: what makes a completion good, and how that becomes a preference."""

from typing import Annotated, Literal

from pydantic import Field

from align.recipe.base import Section


class VerifierReward(Section):
    """1 for a right answer and 0 for a wrong one, from the verifier of the prompt's own task."""

    type: Literal["verifier"]
    """The verifier of the prompt's own task."""
    threshold: float = Field(default=1.0, ge=0, le=1)
    """Less credit than this counts as 0; with 1 only a wholly right answer is worth something."""
    extract: Literal["auto", "last_number", "text"] = "auto"
    """What of a completion is its answer: the last number, all of the text, or whichever the right answer is."""


class CallableReward(Section):
    """A Python function in the form of TRL's `reward_funcs`."""

    type: Literal["callable"]
    """A Python function `fn(prompts, completions, **columns) -> list[float | None]`."""
    function: str = Field(min_length=1)
    """Where it is: `package.module:function`."""
    form: Literal["text", "chat"] = "text"
    """What it is given: `text`, or `chat` messages (TRL's standard and conversational)."""
    threshold: float = 0.5
    """In evaluation an answer counts as right from this reward on."""


class Endpoint(Section):
    """A server, and how patiently it is asked."""

    url: str = Field(min_length=1)
    """Where requests are posted."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest silence before a try is given up, in seconds."""
    retries: int = Field(default=4, ge=0)
    """Further tries after a failure that may pass."""
    batch_size: int = Field(default=64, gt=0)
    """Items of one request."""
    token_env: str | None = Field(default=None, min_length=1)
    """Environment variable that holds the bearer token; none is sent by default."""


class RemoteReward(Endpoint):
    """A reward server that speaks the contract of `align serve`; `url` is its root."""

    type: Literal["remote"]
    """A reward server."""
    threshold: float = 0.5
    """In evaluation an answer counts as right from this reward on."""


class PolarReward(Section):
    """A POLAR policy discriminator (arXiv 2507.05197): how much a completion looks like the prompt's worked answer."""

    type: Literal["polar"]
    """A policy discriminator, relative to the prompt's worked answer."""
    model: str = Field(default="polar:smollm2-135m", min_length=1)
    """A POLAR model: a folder, `hub:ORG/NAME` (converted by `align polar convert` where it is an official one), or
    `polar:NAME` for one that comes with Polestar."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What computes the scores; both give the raw logit."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the model."""
    max_context: int = Field(default=1024, ge=34)
    """Longest sequence, in tokens: prompt twice, reference and completion."""
    combine: Literal["mean", "max"] = "max"
    """What becomes of the scores where a prompt has several references (`references` in its metadata)."""
    normalise: Literal["none", "group", "running"] = "running"
    """POLAR has no zero and a scale of its own. `group`: mean 0 and standard deviation 1 over a prompt's completions.
    `running`: by the mean and standard deviation of all scores so far. The raw score is logged in any case."""
    kv_cache_gib: float = Field(default=0.5, gt=0)
    """vLLM's memory for the key-value cache on the CPU, in GiB."""


Reward = Annotated[VerifierReward | CallableReward | RemoteReward | PolarReward, Field(discriminator="type")]
CheckedReward = Annotated[VerifierReward | CallableReward | RemoteReward, Field(discriminator="type")]
"""Rewards with a threshold from which an answer counts as right."""


class CallableJudge(Section):
    """A Python function that sees both completions."""

    type: Literal["callable"]
    """A Python function `fn(prompt, first, second, **fields) -> float`, the probability that the first is better."""
    function: str = Field(min_length=1)
    """Where it is: `package.module:function`."""
    form: Literal["text", "chat"] = "text"
    """What it is given: `text`, or `chat` messages (TRL's standard and conversational)."""


class RemoteJudge(Endpoint):
    """A server that sees both: `{"items": [{"prompt", "first", "second"}]}` is answered by a probability for each."""

    type: Literal["remote"]
    """A server that compares."""


Judge = Annotated[CallableJudge | RemoteJudge, Field(discriminator="type")]


class ScoreLabel(Section):
    """What labels made of rewards share."""

    pairing: Literal["reference", "best_worst", "both", "random"] = "reference"
    """`reference`: a policy sample against the reference policy's (Algorithm 1). `best_worst`: of all of a prompt's.
    `both`: the former, and the policy's best against its worst. `random`: two of the policy's samples, as they come."""
    ties: Literal["drop", "random"] = "drop"
    """What becomes of a pair with equal scores: left out, or decided by a fair coin."""
    tie_tolerance: float = Field(default=0.0, ge=0)
    """Scores that differ by at most this are equal, in the reward's units."""


class ArgmaxLabel(ScoreLabel):
    """The completion with the higher score is preferred, always."""

    type: Literal["argmax"]
    """The higher score is preferred, always."""


class BradleyTerryLabel(ScoreLabel):
    """The preference is sampled from the Bradley-Terry model of the two scores, the oracle of the XPO paper."""

    type: Literal["bradley_terry"]
    """The preference is sampled with probability sigmoid(score difference / temperature)."""
    temperature: float = Field(default=1.0, gt=0)
    """Score difference, in the reward's units, that makes the odds e to 1."""


class SoftLabel(ScoreLabel):
    """The higher score is preferred, and the Bradley-Terry probability enters the loss (conservative DPO)."""

    type: Literal["soft"]
    """The loss weighs both orders by sigmoid(score difference / temperature)."""
    temperature: float = Field(default=1.0, gt=0)
    """Score difference, in the reward's units, that makes the odds e to 1."""


class JudgeLabel(Section):
    """A judge that sees both completions says which is better."""

    type: Literal["judge"]
    """A judge that sees both completions says which is better."""
    judge: Judge
    """Who judges."""
    label: Literal["argmax", "bradley_terry", "soft"] = "argmax"
    """What becomes of the judge's probability: the likelier side wins, a draw decides, or it enters the loss."""
    pairing: Literal["reference", "each_reference", "random"] = "reference"
    """`reference`: the first policy sample against the reference policy's. `each_reference`: every policy sample
    against it. `random`: two of all samples."""
    ties: Literal["drop", "random"] = "drop"
    """What becomes of a pair between which the judge sees no difference."""
    tie_tolerance: float = Field(default=0.0, ge=0, lt=0.5)
    """Probabilities within this distance of 1/2 are ties."""
    both_orders: bool = False
    """Ask each pair in both orders and average, for twice the cost: takes away the judge's liking for a place."""


Label = Annotated[ArgmaxLabel | BradleyTerryLabel | SoftLabel | JudgeLabel, Field(discriminator="type")]


class Evaluation(Section):
    """How the held-out prompts are answered, and what checks the answers."""

    samples_per_prompt: int = Field(default=1, gt=0)
    """Completions per held-out prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    reward: CheckedReward | None = None
    """What says that an answer is right. By default what the policy learns from; with `polar`, which has no threshold,
    the verifier. Where it is not what the policy learns from, nothing ever learns from it."""
