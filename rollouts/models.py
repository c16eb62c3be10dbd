"""From a model's name to a local folder in Hugging Face format, and from the folder to objects.

A name says where the model comes from:

- a folder with ``config.json`` and safetensors;
- ``hub:ORG/NAME``, downloaded from the Hugging Face hub once;
- ``pkg:PACKAGE/FILE.gguf``, weights inside an installed Python package, de-quantised once into a cache;
- ``tiny:SEED``, a random Llama of two layers, made once into the same cache: it knows nothing, for smoke tests.
"""

import difflib
import errno
import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERSION_VERSION = 1  # raise when converted folders must be made anew
_PREFIXES = ("hub", "pkg", "tiny")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


class ModelError(ValueError):
    """A model cannot be had; the message is one line that says what to do."""


def resolve(name: str, cache_dir: Path | None = None) -> Path:
    """The local folder (``config.json``, safetensors, tokenizer) of the model called ``name``.

    ``cache_dir`` holds converted models; default: :func:`default_cache`. Raises :class:`ModelError`.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or "/" in prefix or prefix.startswith("."):
        return _folder(Path(name).expanduser())
    if prefix == "hub":
        return _hub(rest)
    if prefix == "pkg":
        return _package(rest, cache_dir or default_cache())
    if prefix == "tiny":
        return _tiny(rest, cache_dir or default_cache())
    close = difflib.get_close_matches(prefix, _PREFIXES, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}:{rest}'?" if close else "use a folder, hub:ORG/NAME or pkg:PACKAGE/FILE.gguf"
    raise ModelError(f"model '{name}': unknown prefix '{prefix}:'; {hint}")


def merged(name: str, adapter: str, cache_dir: Path | None = None) -> Path:
    """The local folder of the model called ``name`` with the PEFT adapter of the folder ``adapter`` merged into it.

    It is made once, in the cache of :func:`resolve`, and again where model or adapter have changed; the weights keep
    the model's own type. Raises :class:`ModelError`.
    """
    base, folder = resolve(name, cache_dir), Path(adapter).expanduser()
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() or not (folder / "adapter_config.json").is_file():
        raise ModelError(f"adapter '{adapter}': no adapter_config.json and adapter_model.safetensors there; give a "
                         "folder that peft's save_pretrained wrote")  # fmt: skip
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(base.glob("*.safetensors"))]
    parts = (CONVERSION_VERSION, base, stats, _digest(weights), _digest(folder / "adapter_config.json"))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    target = (cache_dir or default_cache()) / f"merged-{key}"
    return made_once(f"{name}' with adapter '{adapter}", target, lambda made: _merge(base, folder, made))


def load_tokenizer(path: Path | str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a resolved folder; padding falls back to the end-of-sequence token."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model '{path}': its tokenizer has no end-of-sequence token; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(path: Path | str, dtype: "torch.dtype", attn_implementation: str | None = None) -> "PreTrainedModel":
    """The language model of a resolved folder in evaluation mode; every call returns an independent copy."""
    from transformers import AutoModelForCausalLM

    with no_progress_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, low_cpu_mem_usage=True, attn_implementation=attn_implementation
        )
    model.train(False)
    return model


def load_classifier(
    path: Path | str, dtype: "torch.dtype", attn_implementation: str | None = None
) -> "PreTrainedModel":
    """The ``*ForSequenceClassification`` model of a resolved folder in evaluation mode; every call makes a new copy."""
    from transformers import AutoModelForSequenceClassification

    with no_progress_bars():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            str(path), dtype=dtype, low_cpu_mem_usage=True, attn_implementation=attn_implementation
        )
    model.train(False)
    return model


def default_cache() -> Path:
    """Where converted models are kept: ``models`` in ``$POLESTAR_CACHE`` or in ``~/.cache/polestar``."""
    root = os.environ.get("POLESTAR_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "polestar") / "models"


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ModelError(f"model '{path}': no such folder; give an existing one, hub:ORG/NAME or pkg:PACKAGE/FILE.gguf")
    if not (path / "config.json").is_file():
        raise ModelError(f"model '{path}': the folder has no config.json; give one in Hugging Face format")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"model '{path}': the folder has no *.safetensors file; save the model as safetensors")
    return path.resolve()


def _hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    name = f"hub:{repository}"
    try:
        with no_progress_bars():
            folder = snapshot_download(repository, allow_patterns=list(_HUB_FILES))
    except HFValidationError as error:
        raise ModelError(f"model '{name}': not a repository name; write hub:ORG/NAME") from error
    except GatedRepoError as error:
        raise ModelError(f"model '{name}': access is gated; accept its terms and run 'hf auth login'") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"model '{name}': no such repository on the hub, or it is private; check the name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"model '{name}': not in the local cache, and the hub cannot be reached; connect once, or use a folder"
        ) from error
    except OSError as error:
        raise _disk_or(error, name, f"model '{name}': download failed: {_one_line(error)}") from error
    return _folder(Path(folder))


def _package(rest: str, cache: Path) -> Path:
    name = f"pkg:{rest}"
    file = _package_file(rest, name)
    key = hashlib.sha256(f"{CONVERSION_VERSION}\n{_digest(file)}".encode()).hexdigest()[:16]
    target = cache / f"{file.stem.replace('.', '-')}-{key}"
    return made_once(name, target, lambda folder: _convert(file, folder))


def _tiny(rest: str, cache: Path) -> Path:
    from rollouts.tiny import build_tiny_model

    name = f"tiny:{rest}"
    if not rest.isdecimal():
        raise ModelError(f"model '{name}': write tiny:SEED with a whole number, such as tiny:0")
    target = cache / f"tiny-{int(rest)}-v{CONVERSION_VERSION}"

    def build(folder: Path) -> None:
        build_tiny_model(folder, seed=int(rest))

    return made_once(name, target, build)


def _merge(base: Path, adapter: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoTokenizer

    # Summed in float32: in half precision a small update would vanish before it is rounded once.
    adapted = PeftModel.from_pretrained(load_causal_lm(base, torch.float32), str(adapter))
    own = getattr(AutoConfig.from_pretrained(str(base)), "dtype", None) or torch.float32
    with no_progress_bars():
        adapted.merge_and_unload().to(own).save_pretrained(target)
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(target)


def made_once(name: str, target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, filled by ``make`` where it is not there yet; a folder in the cache is always whole."""
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock spares a second process the work; correctness rests on the rename alone.
        with open(target.parent / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                make_atomically(make, target)
    except ModelError:
        raise
    except Exception as error:
        raise _disk_or(error, name, f"model '{name}': cannot be made in {target.parent}: {_one_line(error)}") from error
    return target


def _package_file(rest: str, name: str) -> Path:
    package, _, relative = rest.partition("/")
    if not package.isidentifier() or not relative:
        raise ModelError(f"model '{name}': write pkg:PACKAGE/FILE.gguf")
    # find_spec, not import: such a package is wanted for its files, and its code may need libraries that are absent.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ModelError(f"model '{name}': package '{package}' is not installed; run 'pip install {distribution}'")
    root = Path(next(iter(spec.submodule_search_locations)))
    file = root / relative
    if file.is_file() and file.suffix == ".gguf":
        return file
    found = ", ".join(sorted(str(path.relative_to(root)) for path in root.rglob("*.gguf"))) or "no .gguf file"
    raise ModelError(f"model '{name}': '{relative}' is not a .gguf file of package '{package}', which has: {found}")


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_atomically(make: Callable[[Path], None], target: Path) -> None:
    """The folder ``target``, filled by ``make``; whole or absent."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {file.name} needs the package 'gguf'; run 'pip install gguf'")
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # The GGUF reader's progress bar has no switch; errors are raised, so nothing else is lost with stderr.
    with no_progress_bars(), redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        config = quantised.config
        # transformers refuses to save a model that it read from GGUF: move the weights into one without that mark.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        model.load_state_dict(quantised.state_dict(), strict=True)
        model.save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF reader names the wrong token as the end of a sequence; the model's config has the right one.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(target)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars of transformers and the hub while weights are read."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    hub_was_on, transformers_was_on = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if hub_was_on:
            enable_progress_bars()
        if transformers_was_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _disk_or(error: Exception, name: str, message: str) -> ModelError:
    """The out-of-disk message where ``error`` means that (safetensors reports it as text), else ``message``."""
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error):
        return ModelError(f"model '{name}': the disk is full; free some space or point POLESTAR_CACHE to another disk")
    return ModelError(message)
