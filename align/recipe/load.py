"""Reads recipes: YAML with line numbers, dotted overrides, and every mistake at once."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from align.errors import UserError
from align.recipe import KINDS, KeyPath, Recipe
from align.recipe.explain import did_you_mean, dotted, explain, show

_STRING_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with overrides such as ``schedule.total_steps=2`` applied before validation.

    Raises :class:`UserError` with one line for each mistake in the file and in the overrides.
    """
    source = _Source(str(path))
    source.read(Path(path))
    for text in overrides:
        source.override(text)
    kind = source.data.get("kind", "preference")
    if not isinstance(kind, str) or kind not in KINDS:
        known = f"{did_you_mean(str(kind), KINDS)} (one of: {', '.join(KINDS)})"
        source.refuse([(("kind",), f"unknown kind {show(kind)}{known}")])
    else:
        try:
            recipe = KINDS[kind].model_validate(source.data)
        except ValidationError as error:
            source.refuse(explain(error, KINDS[kind]))
    if source.mistakes:
        raise UserError(*dict.fromkeys(line for _, line in sorted(source.mistakes, key=lambda mistake: mistake[0])))
    return recipe


def dump_resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; :func:`load` reads it back to an equal recipe."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel annotates its default, None
    yaml.allow_unicode = True
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


class _Source:
    """The plain data of one recipe, and where each of its keys was written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data: dict[str, Any] = {}
        self.mistakes: list[tuple[int, str]] = []
        # Key path → (place in the order of reading, "recipes/x.yaml:12" or "override 'a.b=1'").
        self._origins: dict[KeyPath, tuple[int, str]] = {(): (0, name)}

    def read(self, path: Path) -> None:
        """Fills in the file's data. Raises :class:`UserError` where nothing can be read at all."""
        text = _read_text(path, self.name)
        yaml = _parser()
        try:
            node = yaml.compose(text)
            if isinstance(node, MappingNode):
                self._index(node, (), [])
                data = _unshared(yaml.constructor.construct_document(node))
        except (YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{self.name}{_yaml_problem(error)}") from None
        if node is None:
            raise UserError(f"{self.name}: is empty; recipes/xpo.yaml shows what a recipe holds")
        if not isinstance(node, MappingNode):
            raise UserError(f"{self.name}:{node.start_mark.line + 1}: expected 'key: value' lines")
        self.data = data

    def override(self, text: str) -> None:
        """Sets one key, and creates the sections on the way to it."""
        origin = (self._last() + 1, f"override '{text}'")
        key, equals, written = text.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            self._note(origin, "write it as key=value, for example schedule.total_steps=2")
            return
        try:
            value = _unshared(_parser().load(written))
        except (YAMLError, ValueError, RecursionError) as error:
            self._note(origin, f"the value is{_yaml_problem(error, lines=False)}".replace("is:", "is", 1))
            return
        section: Any = self.data
        for depth, part in enumerate(path[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
                self._origins[path[:depth]] = origin
            section = section[part]
            if not isinstance(section, dict):
                self._note(origin, f"'{dotted(path[:depth])}' is {show(section)}, not a section")
                return
        section[path[-1]] = value
        self._origins = {known: where for known, where in self._origins.items() if known[: len(path)] != path}
        self._origins[path] = origin

    def refuse(self, mistakes: Sequence[tuple[KeyPath, str]]) -> None:
        """Notes mistakes at the places where their keys were written."""
        for path, message in mistakes:
            depth = next(depth for depth in range(len(path), -1, -1) if path[:depth] in self._origins)
            self._note(self._origins[path[:depth]], message)

    def _note(self, origin: tuple[int, str], message: str) -> None:
        line = f"{origin[1]}: {message}"
        self.mistakes.append((origin[0], "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)))

    def _last(self) -> int:
        return max(place for place, _ in self._origins.values())

    def _index(self, node: Node, path: KeyPath, above: list[Node]) -> None:
        """Notes the line of every key; drops, with a mistake, duplicate keys and keys that are not text."""
        if any(node is parent for parent in above):
            raise ValueError(f"line {node.start_mark.line + 1} holds an alias of itself")
        if isinstance(node, SequenceNode):
            for position, item in enumerate(node.value):
                self._origins[(*path, position)] = self._line(item)
                self._index(item, (*path, position), [*above, node])
        elif isinstance(node, MappingNode):
            seen: dict[str, int] = {}
            kept = []
            for key, value in node.value:
                place, where = self._line(key)
                if key.tag == _MERGE_TAG:
                    kept.append((key, value))
                elif not isinstance(key, ScalarNode) or key.tag != _STRING_TAG:
                    shown = f"'{key.value}'" if isinstance(key, ScalarNode) else "a list or section"
                    self._note((place, where), f"keys are text, got {shown}; put it in quotes")
                elif key.value in seen:
                    name = dotted((*path, key.value))
                    self._note((place, where), f"duplicate key '{name}', first on line {seen[key.value]}")
                else:
                    seen[key.value] = place
                    kept.append((key, value))
                    self._origins[(*path, key.value)] = (place, where)
                    self._index(value, (*path, key.value), [*above, node])
            node.value = kept

    def _line(self, node: Node) -> tuple[int, str]:
        line = node.start_mark.line + 1
        return line, f"{self.name}:{line}"


def _parser() -> YAML:
    # YAML 1.2 in pure Python: `5e-6` is a number and `yes` is text; the C parser knows only YAML 1.1.
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # they are refused by _index, which can name the first one
    return yaml


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [f.name for f in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"{name}: no such file{did_you_mean(path.name, siblings)}") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder; give a recipe file such as recipes/xpo.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _yaml_problem(error: Exception, lines: bool = True) -> str:
    """``:7: not valid YAML: …`` for the end of a line that starts with the file's name."""
    if isinstance(error, RecursionError):
        return ": not valid YAML: nested too deeply"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        place = f":{error.problem_mark.line + 1}" if lines else ""
        return f"{place}: not valid YAML: {error.problem or error.context}"
    return f": not valid YAML: {' '.join(str(error).split())}"


def _unshared(value: Any) -> Any:
    """A copy in which aliases are values of their own, so that an override of one does not change the other."""
    if isinstance(value, Mapping):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value
