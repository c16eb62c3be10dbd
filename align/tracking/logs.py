"""Other people's logs: into a file of the run folder, so that the console is the run's alone."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOGGERS = (
    "accelerate",
    "asyncio",
    "datasets",
    "filelock",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "peft",
    "py.warnings",
    "ray",
    "torch",
    "transformers",
    "trl",
    "urllib3",
    "vllm",
    "wandb",
)
ENVIRONMENT = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    # Otherwise vLLM, when imported, replaces the handlers of its logger by one that writes to the console.
    "VLLM_CONFIGURE_LOGGING": "0",
}
LOG_FILE = "driver.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _RunLogHandler(logging.FileHandler):
    """Marks the handler as ours, so that a second call finds and replaces it."""


def quiet_third_party(log_dir: Path, level: int = logging.INFO) -> Path:
    """Sends the logs and warnings of third-party libraries to ``<log_dir>/driver.log`` and switches progress bars off.

    Call it before the libraries are imported, and again after: some (transformers, ray) attach a console handler of
    their own when they are first used, which the second call removes. Returns the path of the log.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    path = log_dir / LOG_FILE
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    handler = _RunLogHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        _silence(logger)
        logger.addHandler(handler)
        logger.propagate = False
        # torch says at INFO what it compiled, on every exit, also when it compiled nothing.
        logger.setLevel(max(level, logging.WARNING) if name == "torch" else level)
    # Their children carry handlers too: torch gives one to each of torch._dynamo, torch._inductor and the rest.
    for name, child in list(logging.Logger.manager.loggerDict.items()):
        inside = "." in name and name.split(".")[0] in LOGGERS and name not in LOGGERS
        # A child that answers for itself may do so into a file of its own; only what it told the console moves.
        if isinstance(child, logging.Logger) and inside and _silence(child):
            child.propagate = True
    logging.captureWarnings(True)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return path


def _silence(logger: logging.Logger) -> bool:
    """Removes the handlers that write to the console, and ours of an earlier run; says whether there were any.

    Any stream that is no file counts as the console: libraries keep the ``sys.stderr`` of when they were imported,
    which may have been replaced since. Handlers that have not opened their file yet have no stream.
    """
    found = [
        handler
        for handler in logger.handlers
        if isinstance(handler, _RunLogHandler)
        or (
            isinstance(handler, logging.StreamHandler)
            and not isinstance(handler, logging.FileHandler)
            and handler.stream is not None
        )
    ]
    for handler in found:
        logger.removeHandler(handler)
        if isinstance(handler, _RunLogHandler):
            handler.close()
    return bool(found)


@contextlib.contextmanager
def redirect_fds(path: Path) -> Iterator[TextIO]:
    """While inside, everything that this process and its children write to stdout and stderr is appended to ``path``.

    That includes C libraries, which know nothing of ``sys.stdout``. Yields the real stdout, to give to a
    ``rich.console.Console``; it is line-buffered, and closed at the end. The descriptors are restored on any exit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding=encoding, errors="replace")
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            for descriptor, _ in saved:
                os.dup2(target, descriptor)
        finally:
            os.close(target)
        yield terminal
    finally:
        # What Python still holds back belongs to the file: it was written inside.
        _flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)
        terminal.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A stream that a test or a service replaced may be closed or absent, and then holds nothing back.
        if stream is not None and not stream.closed:
            stream.flush()
