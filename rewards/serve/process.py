"""A scorer in a process of its own: when its engine dies, or hangs, the server lives and starts another."""

import atexit
import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, cast, final

from rewards.polar.scorer import ItemScore
from rewards.serve.types import ItemScorer, ServeItem
from rollouts.engines.base import EngineError

_END_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What was raised in the other process."""

    text: str
    is_value_error: bool


@final
class ProcessScorer:
    """``open_scorer(folder)`` in another process; implements :class:`rewards.serve.types.ItemScorer`.

    ``open_scorer`` must be picklable. An answer that takes longer than ``deadline_s`` seconds, or a start that takes
    longer than ``start_deadline_s``, ends the process. All such ends raise
    :class:`rollouts.engines.base.EngineError`; :meth:`rebuild` starts the next process. Two of them fit one program
    even where two engines do not, and the server's own thread does not wait for Python code of the engine.
    """

    def __init__(
        self,
        open_scorer: Callable[[Path], ItemScorer],
        folder: Path,
        *,
        deadline_s: float = 600.0,
        start_deadline_s: float = 600.0,
    ) -> None:
        self._open_scorer, self._folder = open_scorer, folder
        self._deadline_s, self._start_deadline_s = deadline_s, start_deadline_s
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        # Otherwise the interpreter would join a process that waits for the interpreter.
        atexit.register(self.close)
        self._start()

    @property
    def pid(self) -> int | None:
        """The other process, while there is one."""
        return self._process.pid if self._process else None

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        if self._pipe is None:
            raise EngineError("the scorer's process is not there: rebuild it")
        try:
            self._pipe.send(list(items))
        except OSError as error:
            raise self._ended() from error
        return cast(list[ItemScore], self._answer(self._deadline_s))

    def rebuild(self) -> None:
        self._end()
        self._start()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._open_scorer, self._folder), name=f"scorer-{self._folder.name}"
        )
        self._process = process
        process.start()
        theirs.close()
        try:
            self._answer(self._start_deadline_s)
        except BaseException:
            self._end()
            raise

    def _answer(self, deadline_s: float) -> object:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(deadline_s):
                self._end(grace_s=0)
                raise EngineError(f"the scorer's process gave no answer in {deadline_s:g} s and was ended")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, _Trouble):
            raise (ValueError if answer.is_value_error else EngineError)(answer.text)
        return answer

    def _ended(self) -> EngineError:
        assert self._process is not None
        self._process.join(_END_SECONDS)
        code = self._process.exitcode
        self._end()
        return EngineError(f"the scorer's process has ended with code {code}; -9 can mean that memory ran out")

    def _end(self, grace_s: float = _END_SECONDS) -> None:
        pipe, self._pipe = self._pipe, None
        process, self._process = self._process, None
        if pipe is not None:
            pipe.close()  # an idle process takes that as its end, and closes its engine in order
        if process is None or process.pid is None:
            return
        process.join(grace_s)
        if process.is_alive():
            process.kill()
            process.join(_END_SECONDS)


def _serve(pipe: Connection, open_scorer: Callable[[Path], ItemScorer], folder: Path) -> None:
    # Ctrl-C and a service manager's SIGTERM go to the whole group: the server decides when its scorer ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        scorer = open_scorer(folder)
    except BaseException as error:
        pipe.send(_trouble(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            items = pipe.recv()
            try:
                answer: object = scorer.score_items(items)
            except Exception as error:
                answer = _trouble(error)
            pipe.send(answer)
    scorer.close()


def _trouble(error: BaseException) -> _Trouble:
    text = " ".join(str(error).split())
    return _Trouble(text or type(error).__name__, isinstance(error, ValueError))
