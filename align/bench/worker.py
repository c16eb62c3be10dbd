"""A fresh process for one form of a measurement, so that forms share neither memory nor threads nor caches."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from align.errors import UserError


@contextmanager
def worker(form: str, serve: Callable[..., None], *arguments: Any) -> Iterator[Callable[[Any], dict[str, Any]]]:
    """A process that runs ``serve(pipe, *arguments)``; calling what is yielded sends a message and gives the answer.

    ``serve`` answers every message that it receives from the pipe, and returns at its end.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(message: Any) -> dict[str, Any]:
        try:
            ours.send(message)
            answer: dict[str, Any] = ours.recv()
        except (EOFError, OSError) as error:
            process.join()
            raise UserError(
                f"the process of the {form} form ended with exit code {process.exitcode}; "
                "-9 means that memory ran out: free some, or take a smaller model"
            ) from error
        return answer

    try:
        yield ask
    finally:
        ours.close()
        process.join(10)
        process.terminate()
