"""Weights between processes of one machine: safetensors files in shared memory, written whole, mapped by readers."""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import psutil
import torch
from safetensors import SafetensorError, safe_open

SHARED_MEMORY = Path("/dev/shm")

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_FILE = re.compile(r"polestar-.+-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)-v\d+\.safetensors(\.tmp)?")
_CLOCK_SLACK = 200  # hundredths of a second: process start times are derived from a boot time that is itself rounded


class StoreError(RuntimeError):
    """Weights could not be published or read; the message says what to do."""


@final
class WeightStore:
    """Publishes one process's weights as files that other processes of this machine map.

    ``folder`` defaults to ``/dev/shm``. The newest ``keep`` versions stay; a reader that has mapped an older one keeps
    valid data, because a deleted file lives as long as its mappings. Files of owners that died are swept when the next
    store is made in the same folder.
    """

    def __init__(self, folder: Path | None = None, prefix: str = "weights", keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if not re.fullmatch(r"[\w.-]+", prefix):
            raise ValueError(f"prefix may hold letters, digits, '.', '_' and '-', got {prefix!r}")
        self._folder = _writable(folder or SHARED_MEMORY)
        self._keep = keep
        self._files: list[Path] = []
        started = _started(os.getpid())
        self._stem = f"polestar-{prefix}-{_host()}-{os.getpid()}-{started}"
        sweep(self._folder)
        self._close = weakref.finalize(self, _remove_own, self._files, os.getpid())

    def publish(self, tensors: Mapping[str, torch.Tensor], version: int) -> str:
        """Writes ``tensors`` as ``version`` and returns the ``file:`` URI to open them with.

        Raises :class:`StoreError` when the folder has no room; the versions published before stay valid.
        """
        if not self._close.alive:
            raise StoreError("the weight store is closed")
        header, layout, size = _layout(tensors)
        path = self._folder / f"{self._stem}-v{version}.safetensors"
        if self._keep > 1:  # before writing, so that more than `keep` copies never take memory
            self._make_room(path)
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise StoreError(_no_room(self._folder, size, free))
        temporary = path.with_name(path.name + ".tmp")
        try:
            _write(temporary, header, layout, size)
            os.replace(temporary, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(_no_room(self._folder, size, shutil.disk_usage(self._folder).free)) from error
            raise StoreError(f"cannot write the weights to {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        if path in self._files:
            self._files.remove(path)
        self._files.append(path)
        self._make_room(path)
        return f"file:{path}"

    def close(self) -> None:
        """Deletes this store's files; mappings that readers hold stay valid. May be called twice."""
        self._close()

    def _make_room(self, path: Path) -> None:
        """Deletes the oldest files, so that there are ``keep`` with ``path``."""
        others = [other for other in self._files if other != path]
        for other in others[: max(0, len(others) - (self._keep - 1))]:
            other.unlink(missing_ok=True)
            self._files.remove(other)


def open_weights(uri: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of a published version, mapped and not copied.

    A tensor stays valid after the file is deleted or replaced. Writing to one changes a private copy of its page.
    """
    if not uri.startswith("file:"):
        raise StoreError(f"expected a file: URI of published weights, got {uri!r}")
    path = Path(uri.removeprefix("file:"))
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, file.get_tensor(name)
    except FileNotFoundError:
        raise StoreError(f"no weights at {path}: the store keeps only its newest versions, publish again") from None
    except SafetensorError as error:
        raise StoreError(f"{path} is not a whole safetensors file ({error}): publish again") from error


def sweep(folder: Path) -> list[Path]:
    """Deletes files left in ``folder`` by stores of this machine whose process is gone, and returns them."""
    swept = []
    for path in folder.glob("polestar-*-v*.safetensors*"):
        match = _FILE.fullmatch(path.name)
        if match is None or match["host"] != _host():
            continue
        started = _started(int(match["pid"]))
        if started is None or abs(started - int(match["started"])) > _CLOCK_SLACK:
            with contextlib.suppress(PermissionError):  # another user's: theirs to delete
                path.unlink(missing_ok=True)
                swept.append(path)
    return swept


def _layout(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[tuple[int, torch.Tensor]], int]:
    """The safetensors header, each tensor with its offset in the file, and the file's size in bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    spans: list[tuple[int, torch.Tensor]] = []
    end = 0
    # Widest types first, as safetensors itself does: every tensor is then aligned without holes, which it forbids.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _DTYPES:
            raise StoreError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors files do not hold")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        spans.append((begin, tensor))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    header = len(text).to_bytes(8, "little") + text
    return header, [(len(header) + begin, tensor) for begin, tensor in spans], len(header) + end


def _write(path: Path, header: bytes, layout: list[tuple[int, torch.Tensor]], size: int) -> None:
    with path.open("xb+") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk answers here, not with SIGBUS in the copy below
        memory = mmap.mmap(file.fileno(), size)
    memory[: len(header)] = header
    target = torch.frombuffer(memory, dtype=torch.uint8)  # unmapped with the last tensor that looks at it
    for offset, tensor in layout:
        if tensor.numel():
            span = target[offset : offset + tensor.numel() * tensor.element_size()]
            span.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())


def _writable(folder: Path) -> Path:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"{folder} is not a writable folder: weights need shared memory there, or name another folder "
            "(a disk works, slower)"
        )
    return folder


def _no_room(folder: Path, size: int, free: int) -> str:
    return (
        f"publishing weights needs {size} bytes in {folder}, {free} are free: make it larger "
        "(docker: --shm-size) or name another folder"
    )


def _host() -> str:
    """Names the machine and its process-number space: files of another container's owner must not look dead."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux namespaces here: process numbers are the machine's
        space = 0
    return hashlib.sha256(f"{socket.gethostname()}/{space}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When process ``pid`` started, in hundredths of a second, or None when there is none."""
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def _remove_own(files: list[Path], owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the finalizer but owns nothing
        for path in files:
            path.unlink(missing_ok=True)
        files.clear()
