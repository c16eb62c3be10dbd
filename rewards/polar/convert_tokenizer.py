"""The tokenizer of an official POLAR checkpoint, as a fast one that needs no code from the checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rewards.polar.encoding import SCORE_TOKEN, SEPARATOR
from rewards.polar.types import PolarError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

_REAL_VOCABULARY: Final = 92544
_REAL_IDS: Final = (92397, 92527)  # separator and score token of every released POLAR model
_BPE, _NORMAL, _CONTROL, _USER_DEFINED = 2, 1, 3, 4  # numbers of sentencepiece_model.proto
_ROLES: Final = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


def fast_tokenizer(source: Path, vocab_size: int, score_id: int) -> "PreTrainedTokenizerFast":
    """The tokenizer of the checkpoint folder ``source``, with the two POLAR tokens as special tokens.

    It is read from ``tokenizer.json``, else built from the sentencepiece file ``tokenizer.model``. Either way
    ``tokenizer_config.json`` names the tokens that took the slot of an unused piece: ``added_tokens_decoder``.

    Raises :class:`PolarError` when files are missing, and when the tokenizer does not give ``<|reward|>`` and
    ``[UNUSED_TOKEN_130]`` the ids of the model: ``score_id`` the latter, and both below ``vocab_size``. The older
    InternLM2 reward models call the score token ``<|reward|>``; with their tokenizer POLAR would read its score at the
    separator.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    settings = _settings(source)
    added = _added_tokens(settings)
    if (source / "tokenizer.json").is_file():
        core = _from_json(source / "tokenizer.json", added)
    elif (source / "tokenizer.model").is_file():
        core = _from_sentencepiece(source / "tokenizer.model", added)
    else:
        raise PolarError(f"'{source}' has neither tokenizer.json nor tokenizer.model; download the whole checkpoint")
    core.add_special_tokens([token for _, token in sorted(added.items()) if token.special])
    core.add_tokens([token for _, token in sorted(added.items()) if not token.special])
    _check(core, added, vocab_size, score_id)
    core.add_special_tokens([_special(SEPARATOR), _special(SCORE_TOKEN)])
    roles = {role: _content(settings.get(role)) or default for role, default in _ROLES.items()}
    for role, token in roles.items():
        if core.token_to_id(token) is None:
            raise PolarError(f"'{source}': the tokenizer has no token '{token}', its {role}")
    core.no_padding()
    core.no_truncation()
    bos = roles["bos_token"] if settings.get("add_bos_token", True) else None
    core.post_processor = TemplateProcessing(
        single=f"{bos} $A" if bos else "$A", special_tokens=[(bos, core.token_to_id(bos))] if bos else []
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **roles)  # type: ignore[no-untyped-call]


def _check(core: "Tokenizer", added: Mapping[int, "AddedToken"], vocab_size: int, score_id: int) -> None:
    for index, token in added.items():
        if core.token_to_id(token.content) != index:
            raise PolarError(
                f"the tokenizer gives '{token.content}' the id {core.token_to_id(token.content)}, and its "
                f"tokenizer_config.json {index}; download the tokenizer files again, all from one checkpoint"
            )
    separator = core.token_to_id(SEPARATOR)
    remedy = "take the tokenizer files of a POLAR checkpoint (huggingface.co/internlm/POLAR-7B)"
    if separator == score_id:
        raise PolarError(
            f"the tokenizer calls the score token ({score_id}) '{SEPARATOR}', which is POLAR's separator: it belongs "
            f"to an older InternLM2 reward model; {remedy}"
        )
    expected = _REAL_IDS if vocab_size == _REAL_VOCABULARY else (separator, score_id)
    found = (separator, core.token_to_id(SCORE_TOKEN))
    if separator is None or found != expected or max(separator, score_id) >= vocab_size:
        raise PolarError(
            f"'{SEPARATOR}' and '{SCORE_TOKEN}' have the ids {found[0]} and {found[1]}, and the model of "
            f"{vocab_size} tokens wants {expected[0]} and {expected[1]}; {remedy}"
        )


def _settings(source: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = source / name
        if file.is_file():
            merged |= read_json(file)
    return merged


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; :class:`PolarError` when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolarError(f"'{file}' cannot be read as JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise PolarError(f"'{file}' holds no JSON object; download it again")
    return content


def _added_tokens(settings: Mapping[str, Any]) -> dict[int, "AddedToken"]:
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        int(index): AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags})
        for index, entry in settings.get("added_tokens_decoder", {}).items()
    }


def _special(literal: str) -> "AddedToken":
    from tokenizers import AddedToken

    return AddedToken(literal, special=True, normalized=False)


def _content(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _from_json(file: Path, added: Mapping[int, "AddedToken"]) -> "Tokenizer":
    from tokenizers import Tokenizer

    content = read_json(file)
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise PolarError(f"'{file}' holds no BPE vocabulary, and InternLM2 tokenizers have one")
    names = {index: name for name, index in vocabulary.items()}
    content["model"]["vocab"] = {name: index for index, name in _renamed(names, added).items()}
    taken = {index: token.content for index, token in added.items()}
    for entry in content.get("added_tokens", []):
        entry["content"] = taken.get(entry["id"], entry["content"])
    return Tokenizer.from_str(json.dumps(content))


def _renamed(names: Mapping[int, str], added: Mapping[int, "AddedToken"]) -> dict[int, str]:
    """Pieces by id, after added tokens took the slots of unused ones."""
    taken = {index: token.content for index, token in added.items() if index in names}
    return {index: taken.get(index, name) for index, name in names.items()}


def _from_sentencepiece(file: Path, added: Mapping[int, "AddedToken"]) -> "Tokenizer":
    """The same tokens as sentencepiece's own BPE: highest score first, bytes for what the vocabulary lacks.

    User-defined pieces are found in the text whole, as sentencepiece finds them, unless an added token took their slot.
    Where the model puts a space before a text, text after such a piece or a special token gets one too, as in the
    official fast tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    proto = _proto(file)
    normalizer = proto.normalizer_spec
    if proto.trainer_spec.model_type != _BPE or not proto.trainer_spec.byte_fallback:
        raise PolarError(f"'{file}' is no BPE model with byte fallback, and InternLM2's is one")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        raise PolarError(f"'{file}' rewrites text before it splits it, and InternLM2's does not")
    pieces = list(proto.pieces)
    names = _renamed({index: piece.piece for index, piece in enumerate(pieces)}, added)
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    core = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in names.items()},
            merges=_merges(scores),
            unk_token=proto.trainer_spec.unk_piece or "<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend("▁")] if normalizer.add_dummy_prefix else []
    core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    core.add_tokens(
        [
            AddedToken(piece.piece, normalized="▁" in piece.piece, special=piece.type == _CONTROL)
            for index, piece in enumerate(pieces)
            if piece.type in (_CONTROL, _USER_DEFINED) and index not in added
        ]
    )
    return core


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best piece first, as sentencepiece joins them."""
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in sorted(scores.items(), key=lambda entry: -entry[1])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _proto(file: Path) -> Any:
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        proto = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise PolarError(f"reading '{file}' needs the package 'protobuf'; run 'pip install protobuf'") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise PolarError(f"'{file}' is no sentencepiece model; download it again") from error
    return proto
