"""Model folders with a scalar head: ``*ForSequenceClassification``, one label, a bias-free matrix called ``score``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rollouts.engines.base import EngineError

if TYPE_CHECKING:
    import torch

HEAD: Final = "score.weight"


def read_head(folder: Path) -> "torch.Tensor":
    """The head [1, H] in float32, as stored: a model loaded in bfloat16 would have rounded it.

    Raises :class:`EngineError` where the folder holds no such model; transformers and vLLM would give it a random head.
    """
    require_scalar_head(folder)
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as handle:
            if HEAD in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                head: torch.Tensor = handle.get_tensor(HEAD)
                return head.float()
    raise EngineError(f"'{folder}' holds no tensor '{HEAD}': its head was never saved; train or build the model anew")


def require_scalar_head(folder: Path) -> None:
    """:class:`EngineError` unless ``config.json`` announces a sequence classifier with one label."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"'{folder}' has no readable config.json; give a folder in Hugging Face format") from error
    names = [str(name) for name in config.get("architectures") or []]
    labels = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    if not any(name.endswith("ForSequenceClassification") for name in names) or labels != 1:
        raise EngineError(
            f"'{folder}' is {', '.join(names) or 'a model of no known architecture'} with {labels} label(s); "
            "a *ForSequenceClassification model with num_labels 1 is needed"
        )
