"""Python functions as judgement: found by name, given what they ask for, and blamed by name when they raise."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rewards.errors import RewardError
from rollouts.types import Completion, Prompt

Form = Literal["text", "chat"]
"""How a function sees prompts and completions; TRL knows the same two as standard and conversational.

``text``: a prompt of one user message is its text, any other a list of ``{"role", "content"}``; a completion is text.
``chat``: a prompt is always that list, a completion a list of one assistant message.
"""


class NamedFunction:
    """A callable, or ``package.module:function``; ``role`` is what errors call it.

    A call passes the arguments that the function has parameters for, all of them where it takes ``**kwargs``. Raises
    :class:`RewardError` when it cannot be found or called, and when it raises.
    """

    def __init__(self, function: str | Callable[..., Any], role: str) -> None:
        self._call = _resolve(function, role) if isinstance(function, str) else function
        shown = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)
        self.name = f"{role} {shown}"
        if inspect.iscoroutinefunction(self._call):
            raise RewardError(f"{self.name} is async: give a plain function")
        parameters = _parameters(self._call)
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        if nameless:
            raise RewardError(f"{self.name} must take its arguments by name, but {nameless[0]!r} is positional only")
        self._wants = [p.name for p in parameters if p.name in self.takes and p.default is p.empty]

    def __call__(self, **arguments: Any) -> Any:
        missing = [name for name in self._wants if name not in arguments]
        if missing:
            raise RewardError(f"{self.name} wants {missing[0]!r}; it can have {', '.join(arguments)}")
        given = arguments if self.takes_any else {k: v for k, v in arguments.items() if k in self.takes}
        try:
            return self._call(**given)
        except Exception as error:
            what = " ".join(str(error).split())
            raise RewardError(f"{self.name} raised {type(error).__name__}: {what}") from error

    def call_for_list(self, count: int, **arguments: Any) -> list[Any]:
        """Calls a function that answers for ``count`` items at once."""
        answer = self(**arguments)
        try:
            values = list(answer)
        except TypeError as error:
            raise RewardError(f"{self.name} gave {type(answer).__name__}, not a list of {count} numbers") from error
        if len(values) != count:
            raise RewardError(f"{self.name} gave {len(values)} numbers for {count} items")
        return values


def prompt_form(prompt: Prompt, form: Form = "text") -> str | list[dict[str, str]]:
    """A prompt as functions and endpoints see it."""
    if form == "text" and len(prompt.messages) == 1 and prompt.messages[0].role == "user":
        return prompt.messages[0].content
    return [{"role": m.role, "content": m.content} for m in prompt.messages]


def completion_form(completion: Completion, form: Form) -> str | list[dict[str, str]]:
    """A completion as functions see it."""
    return completion.text if form == "text" else [{"role": "assistant", "content": completion.text}]


def prompt_columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """What is known about the prompts beside their messages, one list for each name.

    ``reference``, ``answer``, and every key of their metadata; None where a prompt has no such thing.
    """
    keys = dict.fromkeys(key for prompt in prompts for key in prompt.metadata)
    columns = {key: [prompt.metadata.get(key) for prompt in prompts] for key in keys}
    return columns | {"reference": [p.reference for p in prompts], "answer": [p.answer for p in prompts]}


def _resolve(name: str, role: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    if not module_name or not path or not all(part.isidentifier() for part in (*module_name.split("."), path)):
        raise RewardError(f"{role} {name!r} is not of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise RewardError(
                f"{role} {name}: no module {error.name!r}: install it, or put the folder that holds it on PYTHONPATH"
            ) from error
        raise RewardError(f"{role} {name}: importing {module_name} failed: {error}") from error
    except Exception as error:
        raise RewardError(f"{role} {name}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, path, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if found is not None:
        raise RewardError(f"{role} {name} is of type {type(found).__name__}, not a function")
    close = difflib.get_close_matches(path, [n for n in vars(module) if callable(getattr(module, n))], n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise RewardError(f"{role} {name}: module {module_name} has no {path!r}{hint}")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Some built-in functions do not tell; they get every argument.
        return [inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)]
