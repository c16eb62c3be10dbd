"""Turns pydantic's complaints about a recipe into lines that say what to type instead."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from align.recipe.base import KeyPath

_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "dict_type": "a section of keys and values",
    "finite_number": "a finite number",
    "invalid-json-value": "text, a number, true, false, a list or a section",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def explain(error: ValidationError, root: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """One (key path, message) for each mistake in a ``root``; the message names the key, not the file."""
    mistakes: list[tuple[KeyPath, str]] = []
    missing: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        path, parent = _locate(item["loc"], root)
        if item["type"] == "conflict":
            mistakes += [(tuple(where), f"{dotted(where)}: {text}") for where, text in item["ctx"]["conflicts"]]
        elif item["type"] == "extra_forbidden":
            suggestion = _suggestion(path, parent, root)
            missing[suggestion] = ""  # a misspelt required key is one mistake, not two
            mistakes.append((path, _unknown_key(path, parent, suggestion)))
        elif item["type"] == "missing" and isinstance(path[-1], str):
            choices = f" (one of: {', '.join(_options(parent))})" if path[-1] == "type" else ""
            missing.setdefault(path, f"missing key '{dotted(path)}'{choices}")
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            mistakes.append(((*path, "type"), _wrong_tag(path, parent, item["input"])))
        elif item["loc"][-1] == "[key]":
            mistakes.append((path, f"{dotted(path[:-1])}: keys are text, got {show(item['input'])}; put it in quotes"))
        else:
            mistakes.append((path, _wrong_value(path, parent, dict(item))))
    return mistakes + [(path, message) for path, message in missing.items() if message]


def dotted(path: Iterable[str | int]) -> str:
    """``("learner", "loss")`` as people write it."""
    return ".".join(map(str, path))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'beta'?``, or nothing when no known word is near."""
    match = _nearest(word, known)
    return f", did you mean '{match}'?" if match else ""


def show(value: object) -> str:
    """A value as a reader of YAML would name it, cut to a readable length."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str | int | float) else f"'{value}'"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def _locate(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """The key path of a pydantic location, which also names union tags, and the model that the last key belongs to."""
    path: list[str | int] = []
    here: Any = root
    parent: type[BaseModel] | None = root
    for part in loc:
        options = _options(here)
        if len(options) > 1:
            here = options[str(part)]
            continue
        if not options and parent is None:
            break  # inside a free-form value, where pydantic adds words of its own
        path.append(part)
        parent = next(iter(options.values()), None)
        field = parent.model_fields.get(str(part)) if parent else None
        here = field.annotation if field else None
    return tuple(path), parent


def _options(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models that a key may hold, by their tag; a lone model without a tag is under the empty string."""
    return {tag: model for model in _members(annotation) for tag in _tags(model)}


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside unions, ``Annotated`` and ``| None``, however these are nested."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _members(argument)


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("type")
    return tuple(map(str, get_args(field.annotation))) if field else ("",)


def _suggestion(path: KeyPath, parent: type[BaseModel] | None, root: type[BaseModel]) -> KeyPath:
    """The key that was meant: very near in the same section, else the same elsewhere, else near; ``()`` for none."""
    siblings = list(parent.model_fields) if parent else []
    leaf = str(path[-1])
    if near := _nearest(leaf, siblings, cutoff=0.8):
        return (*path[:-1], near)
    name = leaf.rpartition(".")[2]
    if elsewhere := next((known for known in _all_keys(root) if known[-1] == name), None):
        return elsewhere
    return (*path[:-1], near) if (near := _nearest(leaf, siblings)) else ()


def _unknown_key(path: KeyPath, parent: type[BaseModel] | None, suggestion: KeyPath) -> str:
    start = f"unknown key '{dotted(path)}'"
    if not suggestion:
        return f"{start} (one of: {', '.join(parent.model_fields)})" if parent else start
    same_section = suggestion[:-1] == path[:-1]
    return f"{start}, did you mean '{suggestion[-1] if same_section else dotted(suggestion)}'?"


def _all_keys(annotation: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for model in _options(annotation).values():
        for name, field in model.model_fields.items():
            if name != "type":
                yield (*prefix, name)
                yield from _all_keys(field.annotation, (*prefix, name))


def _wrong_tag(path: KeyPath, parent: type[BaseModel] | None, value: object) -> str:
    """For the section at ``path``, which ``type`` makes one of several models."""
    known = list(_options(parent.model_fields[str(path[-1])].annotation)) if parent else []
    if isinstance(value, Mapping) and "type" in value:
        return _wrong_type(dotted(path), value["type"], known)
    return f"missing key '{dotted(path)}.type' (one of: {', '.join(known)})"


def _wrong_type(section: str, value: object, known: Sequence[str]) -> str:
    return f"unknown type {show(value)} for {section}{did_you_mean(str(value), known)} (one of: {', '.join(known)})"


def _wrong_value(path: KeyPath, parent: type[BaseModel] | None, item: Mapping[str, Any]) -> str:
    name, kind, value = dotted(path), item["type"], item["input"]
    if kind == "literal_error" and path[-1] == "type":
        return _wrong_type(dotted(path[:-1]), value, list(_options(parent)))
    if kind == "literal_error" and parent:
        known = [str(option) for option in get_args(parent.model_fields[str(path[-1])].annotation)]
        return f"{name}: unknown value {show(value)}{did_you_mean(str(value), known)} (one of: {', '.join(known)})"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{name}: must be {words} {item['ctx'][bound]:g}, got {show(value)}"
    if kind == "string_too_short":
        return f"{name}: must not be empty"
    if kind == "string_pattern_mismatch":
        return f"{name}: may hold letters, digits, '.', '_' and '-' only, got {show(value)}"
    if kind in ("missing", "too_long"):
        return f"{dotted(part for part in path if isinstance(part, str))}: has the wrong number of items"
    if kind in _EXPECTED:
        return f"{name}: expected {_EXPECTED[kind]}, got {show(value)}{_quotes_hint(kind, value)}"
    return f"{name}: {item['msg']}, got {show(value)}"


def _quotes_hint(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return " in quotes; remove them"
    return ""
