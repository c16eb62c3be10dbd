"""The recipe schema: one frozen model per section, unknown keys refused, defaults from the papers.

A recipe's ``kind`` says which program it is. Nothing here imports torch, ray or vllm, so that a recipe is checked in a
moment; :mod:`align.recipe.load` reads the files.
"""

import json

from pydantic import TypeAdapter

from align.recipe.bandit import BanditRecipe
from align.recipe.base import KeyPath, Section
from align.recipe.polar import PolarCorpusRecipe, PolarRecipe, PolarScalingRecipe
from align.recipe.preference import PreferenceRecipe
from align.recipe.robot import RobotRecipe
from align.recipe.running import Common
from align.recipe.sft import SFTRecipe

__all__ = [
    "KINDS",
    "BanditRecipe",
    "Common",
    "KeyPath",
    "PolarCorpusRecipe",
    "PolarRecipe",
    "PolarScalingRecipe",
    "PreferenceRecipe",
    "Recipe",
    "RobotRecipe",
    "SFTRecipe",
    "Section",
    "schema_text",
]

Recipe = (
    PreferenceRecipe | SFTRecipe | BanditRecipe | PolarCorpusRecipe | PolarRecipe | PolarScalingRecipe | RobotRecipe
)
"""A recipe of any kind."""

KINDS: dict[str, type[Recipe]] = {
    "preference": PreferenceRecipe,
    "sft": SFTRecipe,
    "bandit": BanditRecipe,
    "polar_corpus": PolarCorpusRecipe,
    "polar": PolarRecipe,
    "polar_scaling": PolarScalingRecipe,
    "robot": RobotRecipe,
}
"""Each kind's model. A recipe without a kind is a preference recipe."""


def schema_text() -> str:
    """The JSON schema that editors read beside the recipes, as the text of the file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Recipe).json_schema()
    return json.dumps(schema, indent=2) + "\n"
