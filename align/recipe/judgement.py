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


Reward = VerifierReward


Pairing = Literal["reference", "best_worst", "both"]


Ties = Literal["drop", "random"]


class ArgmaxLabel(Section):
    """The completion with the higher score is preferred, always."""

    type: Literal["argmax"]
    """The higher score is preferred, always."""
    pairing: Pairing = "reference"
    """`reference`: a policy sample against the reference policy's (Algorithm 1). `best_worst`: of all of a prompt's.
    `both`: the former, and the policy's best against its worst."""
    ties: Ties = "drop"
    """What becomes of a pair with equal scores."""


class BradleyTerryLabel(Section):
    """The preference is sampled from the Bradley-Terry model of the two scores."""

    type: Literal["bradley_terry"]
    """The preference is sampled with probability sigmoid(score difference / temperature)."""
    temperature: float = Field(default=1.0, gt=0)
    """Score difference, in the reward's units, that makes the odds e to 1."""
    pairing: Pairing = "reference"
    """`reference`: a policy sample against the reference policy's (Algorithm 1). `best_worst`: of all of a prompt's.
    `both`: the former, and the policy's best against its worst."""
    ties: Ties = "drop"
    """What becomes of a pair with equal scores."""


Label = Annotated[ArgmaxLabel | BradleyTerryLabel, Field(discriminator="type")]
