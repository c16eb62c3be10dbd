"""A server over the rule scorer as a program: ``python -m tests.rewards.serve.rule_program DRAIN_S SECONDS HOLD``."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rewards.polar.scorer import ItemScore
from rewards.serve.app import create_app
from rewards.serve.main import Server, listening
from rewards.serve.service import ScoringService
from rewards.serve.types import Limits, ServeItem
from tests.rewards.serve.live import CANARY, RuleScorer


class SlowScorer(RuleScorer):
    """Each batch takes ``seconds``, and waits as long as the file ``hold`` is there."""

    def __init__(self, seconds: float, hold: Path) -> None:
        super().__init__()
        self._seconds, self._hold = seconds, hold

    def score_items(self, items: Sequence[ServeItem]) -> list[ItemScore]:
        time.sleep(self._seconds)
        while self._hold.exists():
            time.sleep(0.01)
        return super().score_items(items)


def main() -> None:
    drain_s, seconds, hold = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    service = ScoringService(
        lambda folder: SlowScorer(seconds, hold), Path("w"), name="rule", canary=CANARY, batch_tokens=1, max_wait_s=0
    )
    app = create_app(service, limits=Limits())
    with listening("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        Server(app, service, drain_s, lambda line: print("ready", flush=True)).run_on(listener)
    print("ended", flush=True)


if __name__ == "__main__":
    main()
