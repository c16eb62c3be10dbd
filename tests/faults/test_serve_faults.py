"""Engines that fail under the scoring service: every item gets a score or a reason, and the server goes on."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.scorer import ItemScore
from rewards.serve import worker
from rewards.serve.canary import Canary
from rewards.serve.process import ProcessScorer
from rewards.serve.service import ScoringService
from rewards.serve.types import ServeItem
from rewards.types import ScoreFailure
from rollouts.engines.base import EngineError
from tests.rewards.serve.fakes import FakeScorer, PlainScorer, item, output_of


def run(items: Sequence[ServeItem], scorer: FakeScorer, canary: Canary | None = None) -> list[ItemScore]:
    """The scores of one request; the service must be able to answer another one afterwards."""

    async def main() -> list[ItemScore]:
        service = ScoringService(lambda folder: scorer, Path("model"), name="fake", canary=canary, max_wait_s=0)
        await service.start()
        try:
            scores = await asyncio.wait_for(service.score(items), 60)
            metrics = service.metrics()
            assert metrics["recoveries_total"] == scorer.rebuilt
            assert metrics["queue_items"] == metrics["requests_open"] == 0
            assert service.alive
            return scores
        finally:
            await service.close(0)

    return asyncio.run(main())


def reasons(scores: Sequence[ItemScore]) -> list[str | None]:
    return [s.score.reason if isinstance(s.score, ScoreFailure) else None for s in scores]


def test_an_engine_that_dies_mid_batch_is_rebuilt_and_the_batch_is_scored() -> None:
    scorer = FakeScorer()
    scorer.fail_next = 2
    scores = run([item(str(n)) for n in range(10)], scorer)
    assert [s.score for s in scores] == list(map(float, range(10)))
    assert scorer.rebuilt == 2
    assert len(scorer.batches) == 3


# One of them: several use up the rebuilds that a batch is worth, and others of the batch then fail with them.
@given(size=st.integers(1, 24), poisonous=st.sets(st.integers(0, 23), max_size=1), refused=st.booleans())
def test_items_that_no_engine_survives_are_found_and_the_others_scored(
    size: int, poisonous: set[int], refused: bool
) -> None:
    scorer = FakeScorer()
    error = ValueError("too long") if refused else EngineError("segmentation fault")
    scorer.poison = lambda one: error if int(output_of(one)) in poisonous else None
    scores = run([item(str(n)) for n in range(size)], scorer)
    assert len(scores) == size
    for n, (score, reason) in enumerate(zip(scores, reasons(scores), strict=True)):
        if n in poisonous:
            assert reason is not None and str(error) in reason
        else:
            assert score.score == float(n)
    assert not refused or scorer.rebuilt == 0, "an item that is refused says nothing against the engine"


def test_an_engine_that_always_fails_is_given_up_after_a_few_tries() -> None:
    scorer = FakeScorer()
    scorer.fail_next = 10**9
    scores = run([item(str(n)) for n in range(64)], scorer)
    assert len(scores) == 64
    assert all(reason and "killed" in reason for reason in reasons(scores))
    assert len(scorer.batches) <= worker.TRIES + 2 * 6, "64 items are not 64 rebuilds"


@pytest.mark.parametrize("wrong", [[], [ItemScore(1.0, frozenset(), 0, 1)] * 3])
def test_an_engine_that_loses_or_invents_items_has_failed(wrong: list[ItemScore]) -> None:
    scorer = FakeScorer()
    scorer.answer = lambda scores: wrong
    found = reasons(run([item("1"), item("2")], scorer))
    assert all(reason and f"gave {len(wrong)} scores for" in reason for reason in found)


def test_an_exit_inside_the_engine_does_not_end_the_thread() -> None:
    scorer = FakeScorer()
    scorer.poison = lambda one: SystemExit(3) if output_of(one) == "1" else None
    first, second = run([item("1"), item("2")], scorer)
    assert isinstance(first.score, ScoreFailure)
    assert second.score == 2.0


def test_a_service_whose_engine_cannot_be_rebuilt_answers_and_recovers_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.0)
    opened: list[FakeScorer] = []

    def open_scorer(folder: Path) -> FakeScorer:
        opened.append(FakeScorer())
        return opened[-1]

    async def main() -> None:
        canary = Canary(better=item("1"), worse=item("0"))
        service = ScoringService(open_scorer, Path("model"), name="fake", canary=canary, max_wait_s=0)
        await service.start()
        opened[0].fail_next, opened[0].rebuild_fails = 1, 1
        failed = await service.score([item("1"), item("2")])
        assert all(reason and "no memory" in reason for reason in reasons(failed))
        assert service.alive and not service.ready
        assert opened[0].closed, "what cannot be rebuilt is closed"
        # Nothing but the next request is needed: another scorer is opened for it.
        assert [s.score for s in await service.score([item("1"), item("2")])] == [1.0, 2.0]
        assert service.ready and len(opened) == 2
        assert service.metrics()["recoveries_total"] == 1
        await service.close(0)

    asyncio.run(main())


def test_a_service_that_is_not_ready_recovers_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("rewards.serve.service.RECHECK_SECONDS", 0.01)
    scorer = FakeScorer()
    scorer.fail_next = 1  # the canary meets it

    async def main() -> None:
        canary = Canary(better=item("1"), worse=item("0"))
        service = ScoringService(lambda folder: scorer, Path("model"), name="fake", canary=canary)
        await service.start()
        while not service.ready:
            await asyncio.sleep(0.001)
        assert scorer.rebuilt == 1
        await service.close(0)

    asyncio.run(main())


def test_a_batch_that_hangs_makes_the_service_not_alive() -> None:
    scorer = FakeScorer()

    async def main() -> None:
        service = ScoringService(
            lambda folder: scorer, Path("model"), name="fake", canary=None, max_wait_s=0, stall_s=0.05
        )
        await service.start()
        scorer.gate.clear()
        hanging = asyncio.create_task(service.score([item("1")], deadline_s=60))
        while service.alive:
            await asyncio.sleep(0.005)
        scorer.gate.set()
        assert [s.score for s in await hanging] == [1.0]
        assert service.alive
        await service.close(0)

    asyncio.run(main())


def test_a_killed_engine_process_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    """The real thing: SIGKILL to the process that holds the model while it computes, and many requests wait."""
    scorers: list[ProcessScorer] = []

    def open_scorer(folder: Path) -> ProcessScorer:
        scorers.append(ProcessScorer(PlainScorer, folder))
        return scorers[-1]

    async def main() -> list[list[ItemScore]]:
        service = ScoringService(open_scorer, tmp_path, name="plain", canary=None, max_wait_s=0, batch_tokens=8)
        await service.start()
        asleep = asyncio.create_task(service.score([item("sleep")]))
        while not (tmp_path / "asleep").exists():
            await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(service.score([item(str(n)), item(str(n + 100))])) for n in range(20)]
        for _ in range(worker.TRIES):  # it falls asleep again in each new process
            pid = scorers[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            (tmp_path / "asleep").unlink()
            while scorers[0].pid in (pid, None) or not ((tmp_path / "asleep").exists() or asleep.done()):
                await asyncio.sleep(0.005)
        answers = await asyncio.wait_for(asyncio.gather(asleep, *waiting), 120)
        assert service.alive and service.metrics()["recoveries_total"] == worker.TRIES
        await service.close(10)
        return answers

    asleep, *waiting = asyncio.run(main())
    assert [reason is not None and "code -9" in reason for reason in reasons(asleep)] == [True]
    assert [[s.score for s in answer] for answer in waiting] == [[float(n), float(n + 100)] for n in range(20)]
    assert (tmp_path / "closed").exists(), "the last process was closed in order"
    assert scorers[0].pid is None


def test_a_process_that_gives_no_answer_is_ended(tmp_path: Path) -> None:
    scorer = ProcessScorer(PlainScorer, tmp_path, deadline_s=1.0)
    try:
        pid = scorer.pid
        assert pid is not None
        with pytest.raises(EngineError, match="no answer in 1 s"):
            scorer.score_items([item("sleep")])
        assert not psutil.pid_exists(pid)
        with pytest.raises(EngineError, match="rebuild it"):
            scorer.score_items([item("1")])
        scorer.rebuild()
        with pytest.raises(ValueError, match="item 0 is too long"):
            scorer.score_items([item("refuse")])
        assert [s.score for s in scorer.score_items([item("1"), item("2")])] == [1.0, 2.0]
    finally:
        scorer.close()


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing holds no model"):
        ProcessScorer(PlainScorer, tmp_path / "missing")
