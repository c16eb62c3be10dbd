"""Every recipe in the repository is a program: it validates, it can be executed, and editors know its schema."""

import json
import os
import subprocess
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from align.recipe import schema_text
from align.recipe.load import dump_resolved, load

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "recipes" / "recipe.schema.json"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHEBANG = "#!/usr/bin/env -S python -m align"
MODELINE = "# yaml-language-server: $schema="

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))


def test_there_is_the_recipe_of_the_main_job() -> None:
    assert ROOT / "recipes" / "xpo.yaml" in RECIPES


@each_recipe
def test_it_validates_and_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    written = tmp_path / "resolved.yaml"
    written.write_text(dump_resolved(recipe), encoding="utf-8")
    assert load(written) == recipe


@each_recipe
def test_the_editors_schema_accepts_it(path: Path) -> None:
    jsonschema.validate(YAML(typ="safe", pure=True).load(path), json.loads(SCHEMA.read_text(encoding="utf-8")))


@each_recipe
def test_its_first_lines_name_the_program_and_the_schema(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == SHEBANG
    assert second.startswith(MODELINE)
    assert (path.parent / second.removeprefix(MODELINE)).resolve() == SCHEMA


@each_recipe
def test_it_can_be_executed(path: Path) -> None:
    assert os.access(path, os.X_OK)
    # Windows and some mounts invent mode bits; git's index is what a clone gets. Outside a clone it lists nothing.
    words = ["git", "ls-files", "-s", "--", str(path)]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not listed.stdout or listed.stdout.startswith("100755 ")


def test_names_are_unique_so_that_no_two_recipes_share_a_run_folder() -> None:
    folders = [load(path).run_dir() for path in RECIPES]
    assert sorted(folders) == sorted(set(folders))


def test_the_schema_file_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run `align schema`"


def test_the_schema_is_a_schema_and_refuses_what_is_wrong() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    recipe = YAML(typ="safe", pure=True).load(ROOT / "recipes" / "xpo.yaml")
    recipe["learner"]["bta"] = 0.2
    with pytest.raises(jsonschema.ValidationError, match="bta"):
        jsonschema.validate(recipe, schema)
