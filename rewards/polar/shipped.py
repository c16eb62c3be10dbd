"""Policy discriminators inside this package, small enough for it: an adapter, its head, and two embedding rows.

``weights/NAME/`` holds ``adapter_model.safetensors`` and ``adapter_config.json`` in PEFT's format, and ``base.json``:
which model the adapter belongs to, by a name that :func:`rollouts.models.resolve` takes everywhere, and how many of its
layers. On first use the two are merged into a folder in the cache.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.polar.model import PolarSettings, assemble, save_polar
from rewards.polar.types import PolarError
from rollouts.models import ModelError, default_cache, made_once, make_atomically, no_progress_bars, resolve

WEIGHTS = Path(__file__).with_name("weights")
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE_FILE = "base.json"
DESCRIPTION_FILE = "polar.json"
"""Beside a trained adapter: the settings and the number of layers of the model that it was trained on."""
MERGE_VERSION = 1  # raise when merged folders must be made anew
MAX_BYTES = 20_000_000
_PREFIXES = ("pkg:", "hub:", "tiny:")


def describe(adapter: Path, settings: PolarSettings, layers: int) -> None:
    """Writes ``polar.json`` beside an adapter, without which :func:`ship` would not know what it was trained on."""
    (adapter / DESCRIPTION_FILE).write_text(json.dumps({"layers": layers, "settings": asdict(settings)}) + "\n")


def ship(adapter: Path, target: Path, *, base: str) -> Path:
    """Writes the adapter folder of a training run as the package data ``target``, for :func:`merged` to find.

    ``base`` names the backbone that the run's model was built on (``pkg:PACKAGE/FILE.gguf`` or ``hub:ORG/NAME``: what
    means the same everywhere). Matrices are rounded to bfloat16, the head stays float32. Raises :class:`PolarError`
    when the files are incomplete or larger than :data:`MAX_BYTES`; ``target`` is whole or absent.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not base.startswith(_PREFIXES):
        raise PolarError(f"'{base}' names no backbone that others have: write pkg:PACKAGE/FILE.gguf or hub:ORG/NAME")
    if target.exists():
        raise PolarError(f"{target} exists: remove it, or ship under another name")
    for name in (ADAPTER_FILE, ADAPTER_CONFIG, DESCRIPTION_FILE):
        if not (adapter / name).is_file():
            raise PolarError(f"{adapter} has no {name}: give the 'adapter' folder of a finished LoRA run")
    description = json.loads((adapter / DESCRIPTION_FILE).read_text())
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    # Where the run had its model is nobody's business, and nobody's folder either.
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    tensors = {
        name: (tensor if "score" in name.split(".") else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in load_file(adapter / ADAPTER_FILE).items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_BYTES:
        raise PolarError(
            f"{adapter}: {size / 1e6:.1f} MB of weights, more than the {MAX_BYTES / 1e6:.0f} MB that a package may "
            "carry: train with a lower rank or fewer target_modules"
        )

    def write(folder: Path) -> None:
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / BASE_FILE).write_text(json.dumps({"base": base} | description, indent=2) + "\n")

    target.parent.mkdir(parents=True, exist_ok=True)
    make_atomically(write, target)
    return target


def merged(name: str, cache_dir: Path | None = None, weights: Path | None = None) -> Path:
    """The folder of the policy discriminator ``polar:NAME``: adapter and base in one, made once.

    They are added in float32 and saved in bfloat16, the format of the bases: half the disk, and an error that the
    engines make anyway; the head stays float32. Raises :class:`PolarError` and :class:`rollouts.models.ModelError`.
    """
    root = weights or WEIGHTS
    folder = root / name
    if not name.isidentifier() and not name.replace("-", "_").isidentifier():
        raise PolarError(f"model 'polar:{name}': NAME has letters, digits, '-' and '_'")
    if not (folder / BASE_FILE).is_file():
        known = sorted(path.parent.name for path in root.glob(f"*/{BASE_FILE}"))
        there = f"there are: {', '.join(known)}" if known else "this installation has none"
        raise PolarError(f"model 'polar:{name}': no such policy discriminator; {there}")
    base = json.loads((folder / BASE_FILE).read_text())
    digest = hashlib.sha256(str(MERGE_VERSION).encode())
    for file in (BASE_FILE, ADAPTER_CONFIG, ADAPTER_FILE):
        digest.update((folder / file).read_bytes())
    target = (cache_dir or default_cache()) / f"polar-{name}-{digest.hexdigest()[:16]}"
    backbone = resolve(base["base"], cache_dir)
    return made_once(f"polar:{name}", target, lambda scratch: _merge(folder, base, backbone, scratch))


def _merge(folder: Path, base: dict[str, Any], backbone: Path, target: Path) -> None:
    from peft import PeftModel

    model, tokenizer, settings = assemble(
        backbone, PolarSettings(**base["settings"]), layers=base["layers"], dtype="float32"
    )
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    trained = {index for rows in (config.get("trainable_token_indices") or {}).values() for index in rows}
    here = {tokenizer.convert_tokens_to_ids(token) for token in (settings.separator, settings.score_token)}
    if trained != here:
        raise ModelError(
            f"{folder}: its embedding rows are {sorted(trained)}, those of {base['base']} are {sorted(here)}: the "
            "base's vocabulary is not the one that the adapter was trained with"
        )
    with no_progress_bars():
        adapted = PeftModel.from_pretrained(model, str(folder))
    whole = adapted.merge_and_unload()
    save_polar(whole, tokenizer, settings, target, dtype="bfloat16")
