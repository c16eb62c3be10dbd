"""A whole server as a program of its own, whose scorer lives in another process: ``python -m ... FOLDER``."""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rewards.polar.scorer import ItemScore
from rewards.serve.app import create_app
from rewards.serve.main import Server, listening
from rewards.serve.process import ProcessScorer
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits, ServeItem
from tests.rewards.serve.fakes import PlainScorer

SECONDS = 0.02


class SlowScorer(PlainScorer):
    """As :class:`PlainScorer`; every item takes a moment."""

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        (self.folder / "busy").touch()
        time.sleep(SECONDS * len(items))
        return super().score_items(items)


def main(folder: Path) -> None:
    open_scorer = functools.partial(ProcessScorer, SlowScorer)
    service = ScoringService(open_scorer, folder, name="slow", canary=None, batch_tokens=8, max_wait_s=0)
    with listening("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        server = Server(create_app(service, limits=Limits()), service, 30.0, lambda line: print(line, flush=True))
        server.run_on(listener)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
