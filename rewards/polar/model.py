"""A policy discriminator as a folder: built from a causal backbone, saved, loaded, found by its name.

The folder is in Hugging Face format (``*ForSequenceClassification``, one label, bias-free head ``score``), with a key
``polar`` in ``config.json`` beside (:class:`PolarSettings`). A name is one of those of :mod:`rollouts.models` that
stands for such a folder (a folder, ``hub:ORG/NAME``), or ``polar:NAME``: an adapter inside this package
(:mod:`rewards.polar.shipped`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR, PolarEncoder
from rewards.polar.types import PolarError
from rollouts.models import ModelError, load_classifier, load_tokenizer, make_atomically, no_progress_bars, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH, MAX_RESPONSE_LENGTH = 16384, 4096
NEW_ROW_SPREAD = 0.1
"""Spread of the noise on a new embedding row, in standard deviations of the existing rows."""

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class PolarSettings:
    """The key ``polar`` of ``config.json``: how the model's input is written. Lengths are in tokens."""

    separator: str = SEPARATOR
    score_token: str = SCORE_TOKEN
    max_length: int = MAX_LENGTH
    max_response_length: int = MAX_RESPONSE_LENGTH

    def fitted(self, positions: int) -> "PolarSettings":
        """The same within ``positions`` of a backbone.

        Where two whole responses would leave no room for the prompt, a response may fill a quarter: two of them and the
        prompt twice are the whole.
        """
        length, response = min(self.max_length, positions), self.max_response_length
        # Four tokens: the separator, the score token and two line breaks.
        if 2 * response + 4 >= length:
            response = (length - 4) // 4
        if response < 1:
            raise PolarError(f"max_length {length} has no room for two responses and the prompt twice: give more")
        return PolarSettings(self.separator, self.score_token, length, response)


def build_polar(
    backbone: Path,
    target: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    max_length: int = MAX_LENGTH,
    max_response_length: int = MAX_RESPONSE_LENGTH,
    dtype: Dtype | None = None,
) -> Path:
    """Writes an untrained policy discriminator on the causal model in ``backbone`` to the new folder ``target``.

    The body is the backbone's, or its first ``layers`` layers under its own final norm; the head is zero, as XTuner
    starts it, so that every score is 0 and the loss ln 2. A special token that the vocabulary lacks is added: its
    embedding row is the mean of the existing ones plus noise of :data:`NEW_ROW_SPREAD` standard deviations, drawn with
    ``seed``, without which separator and score token would begin as one. Lengths are fitted to the backbone's positions
    (:meth:`PolarSettings.fitted`). ``dtype`` is that of the saved body, by default the backbone's own; the head is
    float32. Raises :class:`PolarError`; ``target`` is whole or absent.
    """
    if target.exists():
        raise PolarError(f"{target} exists: remove it, or build into another folder")
    settings = PolarSettings(max_length=max_length, max_response_length=max_response_length)
    model, tokenizer, settings = assemble(backbone, settings, layers=layers, seed=seed, dtype=dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_polar(model, tokenizer, settings, target)
    return target


def assemble(
    backbone: Path, settings: PolarSettings, *, layers: int | None, seed: int = 0, dtype: Dtype | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PolarSettings]":
    """What :func:`build_polar` saves, in memory: model, tokenizer and the fitted settings."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from rewards.polar.head import FloatHead

    config: Any = AutoConfig.from_pretrained(str(backbone))
    settings = settings.fitted(config.max_position_embeddings)
    _keep_layers(config, layers, backbone)
    config.num_labels = 1
    try:
        with no_progress_bars(), _no_loading_report():
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                str(backbone), config=config, dtype=getattr(torch, dtype) if dtype else "auto"
            )
    except ValueError as error:
        raise PolarError(
            f"{backbone}: transformers has no sequence classifier for '{config.model_type}'; take another backbone"
        ) from error
    model.score = FloatHead(config.hidden_size)
    tokenizer = load_tokenizer(backbone)
    _add_tokens(model, tokenizer, (settings.separator, settings.score_token), seed)
    # The head is read at the last token that is not padding, which it finds by this id.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.train(False)
    return model, tokenizer, settings


def save_polar(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: PolarSettings,
    target: Path,
    dtype: Dtype | None = None,
) -> None:
    """Writes a policy discriminator to ``target``, whole or absent; what was there before is replaced.

    The body is cast to ``dtype``, in place, where one is given; the head stays float32.
    """
    import torch

    if dtype:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and not name.startswith("score."):
                tensor.data = tensor.data.to(getattr(torch, dtype))
        model.config.dtype = dtype
    config: Any = model.config
    config.polar = asdict(settings)

    def write(folder: Path) -> None:
        with no_progress_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    shutil.rmtree(target, ignore_errors=True)
    make_atomically(write, target)


def polar_settings(folder: Path | str) -> PolarSettings:
    """The settings in a folder's ``config.json``. Raises :class:`PolarError` when it has none."""
    path = Path(folder) / "config.json"
    try:
        found = json.loads(path.read_text()).get("polar")
    except (OSError, ValueError) as error:
        raise PolarError(f"{folder}: no readable config.json; give the folder of a policy discriminator") from error
    wanted = {field.name for field in fields(PolarSettings)}
    if not isinstance(found, dict) or not wanted <= found.keys():
        raise PolarError(
            f"{folder} is no POLAR model: its config.json has no key 'polar' with {', '.join(sorted(wanted))}; run "
            "'align polar convert' on an official checkpoint, or train one by a recipe of kind 'polar'"
        )
    return PolarSettings(**{name: found[name] for name in wanted})


def is_polar(folder: Path | str) -> bool:
    """Whether a folder holds a policy discriminator, and not a plain backbone."""
    try:
        polar_settings(folder)
    except PolarError:
        return False
    return True


def load_polar(path: Path | str, dtype: "torch.dtype", attn_implementation: str | None = None) -> "PreTrainedModel":
    """The policy discriminator of a folder in evaluation mode: its body in ``dtype``, its head in float32.

    Raises :class:`PolarError` when the folder holds none.
    """
    from rewards.polar.head import FloatHead
    from rollouts.engines.base import EngineError
    from rollouts.engines.scalar_head import read_head

    polar_settings(path)
    try:
        weight = read_head(Path(path))
    except EngineError as error:
        raise PolarError(str(error)) from error
    model = load_classifier(path, dtype, attn_implementation)
    head = FloatHead(weight.shape[1])
    # From the file: a head that was loaded in bfloat16 has been rounded.
    head.weight.data.copy_(weight)
    model.score = head
    model.train(False)
    return model


def load_encoder(path: Path | str, settings: PolarSettings | None = None) -> PolarEncoder:
    """What writes texts as token ids for the policy discriminator of a folder; ``settings`` in place of its own."""
    settings = settings or polar_settings(path)
    return PolarEncoder(load_tokenizer(path), **asdict(settings))


def resolve_polar(name: str, cache_dir: Path | None = None, weights: Path | None = None) -> Path:
    """The local folder of the policy discriminator called ``name``; see the top of this module.

    ``cache_dir`` is as in :func:`rollouts.models.resolve`; ``weights`` is where ``polar:NAME`` looks, by default inside
    this package. Raises :class:`PolarError`.
    """
    from rewards.polar.shipped import merged

    try:
        if name.startswith("polar:"):
            return merged(name.removeprefix("polar:"), cache_dir, weights)
        folder = resolve(name, cache_dir)
    except ModelError as error:
        raise PolarError(str(error)) from error
    polar_settings(folder)
    return folder


def _keep_layers(config: Any, layers: int | None, backbone: Path) -> None:
    if layers is None:
        return
    if not 1 <= layers <= config.num_hidden_layers:
        raise PolarError(f"{backbone} has {config.num_hidden_layers} layers: keep 1 to so many of them, not {layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _add_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase", tokens: tuple[str, ...], seed: int) -> None:
    import torch
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if not missing:
        return
    used = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.get_input_embeddings().weight.detach()
    # Rows behind the vocabulary are padding that no training has touched.
    deviation, mean = torch.std_mean(weight[:used].float(), dim=0)
    generator = torch.Generator().manual_seed(seed)
    for token in missing:
        row = mean + NEW_ROW_SPREAD * deviation * torch.randn(mean.shape, generator=generator)
        weight[tokenizer.convert_tokens_to_ids(token)] = row.to(weight.dtype)


@contextmanager
def _no_loading_report() -> Iterator[None]:
    """Without transformers' table of what a causal checkpoint has too much (its head) and too little (ours)."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
