"""The service: N in, N out, in order, whatever else is asked for at the same time."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem
from rewards.serve.canary import Canary
from rewards.serve.service import ScoringService
from rewards.serve.types import (
    DeadlinePassed,
    Overloaded,
    Rendered,
    ServeItem,
    ServiceClosed,
    SwapFailed,
    TooManyItems,
)
from rewards.types import ScoreFailure
from rollouts.types import Message
from tests.rewards.serve.fakes import FakeScorer, item, output_of

ResultT = TypeVar("ResultT")
Body = Callable[[ScoringService, FakeScorer], Awaitable[ResultT]]
RIGHT = Canary(better=item("1"), worse=item("0"))
WRONG = Canary(better=item("0"), worse=item("1"))


def serve(body: Body[ResultT], scorer: FakeScorer | None = None, **options: Any) -> ResultT:
    """What ``body`` returns, given a service that runs and its scorer."""
    fake = scorer or FakeScorer()

    async def run() -> ResultT:
        options.setdefault("canary", None)
        service = ScoringService(lambda folder: fake, Path("model"), name="fake", **options)
        await service.start()
        try:
            return await asyncio.wait_for(body(service, fake), 60)
        finally:
            fake.gate.set()
            await service.close(0)

    return asyncio.run(run())


def values(scores: list[ItemScore]) -> list[float]:
    assert all(isinstance(s.score, float) for s in scores), scores
    return [s.score for s in scores if isinstance(s.score, float)]


async def entered(scorer: FakeScorer) -> None:
    """Waits until a batch has come into the scorer."""
    assert await asyncio.to_thread(scorer.entered.acquire, timeout=30)


async def blocked(service: ScoringService, scorer: FakeScorer) -> "asyncio.Task[list[ItemScore]]":
    """A request of one item that is inside the scorer and stays there until the gate is opened."""
    scorer.gate.clear()
    while scorer.entered.acquire(blocking=False):  # batches of before
        pass
    task = asyncio.create_task(service.score([item("999", prompt="block")]))
    await entered(scorer)
    return task


ITEMS = st.builds(
    lambda output, prompt, wrapper: PolarItem(prompt, "r", output, wrapper),
    st.integers(0, 9).map(str),
    st.sampled_from(["p", "q"]),
    st.sampled_from(["sft", "pretrain"]),
) | st.integers(0, 9).map(lambda n: Rendered(str(n)))


@given(requests=st.lists(st.lists(ITEMS, max_size=12), min_size=1, max_size=8), batch_tokens=st.integers(1, 40))
def test_every_request_gets_its_own_scores_in_order(requests: list[list[ServeItem]], batch_tokens: int) -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[list[ItemScore]]:
        answers = await asyncio.gather(*(service.score(request) for request in requests))
        assert service.metrics()["queue_items"] == service.metrics()["queue_bytes"] == 0
        return answers

    scorer = FakeScorer()
    answers = serve(body, scorer, batch_tokens=batch_tokens, max_wait_s=0)
    assert [values(answer) for answer in answers] == [[float(output_of(one)) for one in r] for r in requests]
    assert len(scorer.threads) <= 1, "one thread drives the scorer"


def test_identical_items_are_computed_once() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[list[ItemScore]]:
        running = await blocked(service, scorer)
        same = [item("5"), PolarItem([Message("user", "p")], "r", "5"), item("6")]
        waiting = [asyncio.create_task(service.score(same)) for _ in range(3)]
        # This one joins what is inside the scorer already.
        joined = asyncio.create_task(service.score([item("999", prompt="block")]))
        await asyncio.sleep(0)
        scorer.gate.set()
        answers = await asyncio.gather(running, joined, *waiting)
        assert service.metrics()["items_total"] == 3
        assert service.metrics()["deduplicated_total"] == 1 + 3 * 3 - 2
        return answers

    scorer = FakeScorer()
    running, joined, *waiting = serve(body, scorer)
    assert sum(len(batch) for batch in scorer.batches) == 3
    assert values(running) == values(joined) == [999]
    assert (running[0].cached_tokens, joined[0].cached_tokens) == (3, 10), "nothing was computed for the second"
    assert [values(w) for w in waiting] == [[5, 5, 6]] * 3


def test_items_that_differ_in_anything_are_not_the_same() -> None:
    items = [
        PolarItem("p", "r", "1"),
        PolarItem("p", "r", "1", "pretrain"),
        PolarItem("p", "s", "1"),
        PolarItem("q", "r", "1"),
        Rendered("1"),
    ]

    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        return await service.score(items)

    scorer = FakeScorer()
    serve(body, scorer)
    assert sum(len(batch) for batch in scorer.batches) == len(items)


def test_what_shares_a_prefix_is_neighbours_across_requests() -> None:
    """Single items of two groups, as trainers send them that ask for one item at a time."""

    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        running = await blocked(service, scorer)
        tasks = [
            asyncio.create_task(service.score([item(str(n), prompt="p" if n % 2 else "q")])) for n in range(10, 18)
        ]
        await asyncio.sleep(0)
        scorer.gate.set()
        await asyncio.gather(running, *tasks)

    scorer = FakeScorer()
    serve(body, scorer)
    assert [output_of(one) for one in scorer.batches[1]] == ["10", "12", "14", "16", "11", "13", "15", "17"]


def test_rendered_items_with_the_same_beginning_are_neighbours() -> None:
    texts = [f"{head}<|reward|>{head}{n}[UNUSED_TOKEN_130]" for n in range(3) for head in ("a", "b")]

    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        return await service.score([Rendered(text) for text in texts])

    scorer = FakeScorer()
    serve(body, scorer)
    assert [output_of(one)[0] for one in scorer.batches[0]] == ["a"] * 3 + ["b"] * 3


def test_a_huge_request_does_not_starve_small_ones() -> None:
    """10 000 items of one request, and a small request that comes when it has been queued."""

    async def body(service: ScoringService, scorer: FakeScorer) -> tuple[int, list[float]]:
        running = await blocked(service, scorer)
        huge = asyncio.create_task(service.score([item(str(n), prompt=str(n // 8)) for n in range(10_000)]))
        await asyncio.sleep(0)
        small = asyncio.create_task(service.score([item("-7", prompt="small")]))
        await asyncio.sleep(0)
        scorer.gate.set()
        await small
        batches = len(scorer.batches)
        return batches, values(await huge) + values(await running)

    batches, scores = serve(body, batch_tokens=64)
    assert scores == [*map(float, range(10_000)), 999]
    assert batches <= 1 + 2 + 1, "its turn comes after one group of the other request"


def test_a_group_stays_together_and_too_large_a_one_is_cut() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        return await service.score([item(str(n)) for n in range(150)])

    scorer = FakeScorer()
    serve(body, scorer, batch_tokens=1, max_wait_s=0)
    assert [len(batch) for batch in scorer.batches] == [64, 64, 22]


def test_a_batch_waits_for_company_but_not_for_ever() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        first = asyncio.create_task(service.score([item("1")]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(service.score([item("2")]))
        await asyncio.gather(first, second)

    scorer = FakeScorer()
    serve(body, scorer, max_wait_s=1.0)
    assert [len(batch) for batch in scorer.batches] == [2]


def test_a_full_batch_does_not_wait() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        return await service.score([item("1" * 400)])

    assert len(serve(body, batch_tokens=8, max_wait_s=3600.0)) == 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[float]:
        await service.score([item("1", prompt="warm")])
        running = await blocked(service, scorer)
        queued = asyncio.create_task(service.score([item(str(n)) for n in range(8)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await service.score([item("20"), item("21"), item("22")])
        assert math.isfinite(caught.value.retry_after_s) and caught.value.retry_after_s > 0
        with pytest.raises(TooManyItems):
            await service.score([item(str(n)) for n in range(11)])
        assert service.metrics()["queue_items"] == 8, "a refused request leaves nothing behind"
        assert service.metrics()["overloaded_total"] == 1
        scorer.gate.set()
        await asyncio.gather(running, queued)
        return values(await service.score([item("20"), item("21"), item("22")]))

    assert serve(body, queue_items=10) == [20, 21, 22]


def test_the_text_in_the_queue_is_bounded_too() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        running = await blocked(service, scorer)
        queued = asyncio.create_task(service.score([item("1" * 100)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await service.score([item("2")])
        scorer.gate.set()
        await asyncio.gather(running, queued)

    serve(body, queue_bytes=100)


def test_what_is_late_is_refused_and_not_computed() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        running = await blocked(service, scorer)
        with pytest.raises(DeadlinePassed, match=r"0\.01 s"):
            await service.score([item("1"), item("2")], deadline_s=0.01)
        with pytest.raises(DeadlinePassed):
            await service.score([item("3")], deadline_s=0)
        assert service.metrics()["queue_items"] == 0
        assert service.metrics()["deadline_passed_total"] == 2
        scorer.gate.set()
        await running
        assert values(await service.score([item("4")], deadline_s=30)) == [4]

    scorer = FakeScorer()
    serve(body, scorer)
    assert [[output_of(one) for one in batch] for batch in scorer.batches] == [["999"], ["4"]]


def test_a_cancelled_request_frees_its_place_but_not_what_others_want() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[float]:
        running = await blocked(service, scorer)
        gone = asyncio.create_task(service.score([item("1"), item("2"), item("999", prompt="block")]))
        await asyncio.sleep(0)
        stays = asyncio.create_task(service.score([item("2"), item("3")]))
        await asyncio.sleep(0)
        assert service.metrics()["queue_items"] == 3
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert service.metrics()["queue_items"] == 2
        assert service.metrics()["cancelled_total"] == 1
        scorer.gate.set()
        return values(await stays) + values(await running)

    scorer = FakeScorer()
    assert serve(body, scorer) == [2, 3, 999]
    assert [[output_of(one) for one in batch] for batch in scorer.batches] == [["999"], ["2", "3"]]


def test_scores_stream_as_they_become_ready() -> None:
    """The first score is told while the engine still works on the others."""
    told = threading.Event()

    def hold(one: ServeItem) -> None:
        assert output_of(one) == "0" or told.wait(30)

    async def body(service: ScoringService, scorer: FakeScorer) -> list[float]:
        scorer.poison = hold
        seen: list[float] = []
        with service.submit([item(str(n), prompt=str(n)) for n in range(4)]) as ticket:
            async for score in ticket:
                seen += values([score])
                told.set()
        return seen

    assert serve(body, batch_tokens=1, max_wait_s=0) == [0, 1, 2, 3]


def test_a_stream_that_is_left_computes_no_more() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        running = await blocked(service, scorer)
        with service.submit([item(str(n), prompt=str(n)) for n in range(4)]) as ticket:
            assert service.metrics()["queue_items"] == 4
        assert service.metrics()["queue_items"] == 0
        with pytest.raises(ServiceClosed, match="cancelled"):
            [score async for score in ticket]
        scorer.gate.set()
        await running

    scorer = FakeScorer()
    serve(body, scorer)
    assert len(scorer.batches) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_leaves(value: float) -> None:
    def spoil(scores: list[ItemScore]) -> list[ItemScore]:
        return [ItemScore(value, s.truncated, 0, 10) if s.score == 2.0 else s for s in scores]

    scorer = FakeScorer()
    scorer.answer = spoil

    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        answer = await service.score([item("1"), item("2"), item("3")])
        assert service.metrics()["failures_total"] == 1
        return answer

    first, second, third = serve(body, scorer)
    assert (first.score, third.score) == (1.0, 3.0)
    assert isinstance(second.score, ScoreFailure) and str(value) in second.score.reason


def test_no_items_are_no_work() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[ItemScore]:
        return await service.score([])

    scorer = FakeScorer()
    assert serve(body, scorer) == []
    assert scorer.batches == []


def test_closing_answers_what_is_queued_and_refuses_the_rest() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> list[float]:
        running = await blocked(service, scorer)
        queued = asyncio.create_task(service.score([item("1")]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(service.close(30))
        await asyncio.sleep(0)
        assert not service.ready and service.alive
        with pytest.raises(ServiceClosed):
            await service.score([item("2")])
        scorer.gate.set()
        await closing
        assert scorer.closed and not service.alive
        return values(await running) + values(await queued)

    assert serve(body) == [999, 1]


def test_closing_does_not_wait_longer_than_it_may() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        running = await blocked(service, scorer)
        closing = asyncio.create_task(service.close(0.01))
        with pytest.raises(ServiceClosed, match="before the request was answered"):
            await running
        scorer.gate.set()
        await closing
        assert scorer.closed

    serve(body)


def test_a_model_that_fails_its_canary_is_alive_and_not_ready() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        assert service.alive and not service.ready
        assert service.fault is not None and "wrong order" in service.fault
        assert values(await service.score([item("1")])) == [1]
        scorer.sign = -1.0
        assert await service.check() is None
        assert service.ready

    serve(body, canary=WRONG)


def test_a_model_that_passes_its_canary_is_ready_until_it_does_not() -> None:
    async def body(service: ScoringService, scorer: FakeScorer) -> None:
        assert service.ready and service.metrics()["ready"] == 1
        scorer.answer = lambda scores: [ItemScore(math.nan, frozenset(), 0, 1) for _ in scores]
        assert await service.check() is not None
        assert not service.ready and service.alive

    serve(body, canary=RIGHT)


def test_a_model_that_cannot_be_opened_is_an_error_at_the_start() -> None:
    def open_scorer(folder: Path) -> FakeScorer:
        raise FileNotFoundError(f"{folder} holds no model")

    async def run() -> None:
        service = ScoringService(open_scorer, Path("nowhere"), name="none")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            await service.start()
        assert not service.alive and not service.ready

    asyncio.run(run())


def test_a_service_that_is_closed_while_it_starts_closes_its_scorer() -> None:
    scorer = FakeScorer()
    scorer.gate.clear()

    async def run() -> None:
        service = ScoringService(lambda folder: scorer, Path("model"), name="fake", canary=RIGHT)
        starting = asyncio.create_task(service.start())
        await entered(scorer)
        await service.close(0)
        scorer.gate.set()
        with pytest.raises(ServiceClosed):
            await starting
        while not scorer.closed:
            await asyncio.sleep(0.001)

    asyncio.run(run())


class Shelf:
    """Folders with scorers; a folder whose name starts with ``bad`` cannot be opened."""

    def __init__(self) -> None:
        self.scorers: dict[str, FakeScorer] = {}
        self.opened: list[str] = []
        self.alive_at_opening: list[int] = []

    def __call__(self, folder: Path) -> FakeScorer:
        self.opened.append(folder.name)
        self.alive_at_opening.append(sum(not s.closed for s in self.scorers.values()))
        if folder.name.startswith("bad"):
            raise ValueError("no weights")
        self.scorers[folder.name] = FakeScorer(sign=-1.0 if folder.name.startswith("wrong") else 1.0)
        return self.scorers[folder.name]


def swapping(body: Callable[[ScoringService, Shelf], Coroutine[Any, Any, None]], exclusive: bool) -> None:
    async def run() -> None:
        shelf = Shelf()
        service = ScoringService(shelf, Path("old"), name="fake", canary=RIGHT, exclusive=exclusive, max_wait_s=0)
        await service.start()
        try:
            await asyncio.wait_for(body(service, shelf), 60)
        finally:
            for scorer in shelf.scorers.values():
                scorer.gate.set()
            await service.close(0)
        assert all(scorer.closed for scorer in shelf.scorers.values()), "every scorer that was opened is closed"

    asyncio.run(run())


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_swap_drops_nothing_and_mixes_no_versions(exclusive: bool) -> None:
    async def body(service: ScoringService, shelf: Shelf) -> None:
        old = shelf.scorers["old"]
        await entered(old)  # the canary
        old.gate.clear()
        before = service.submit([item("1"), item("2", prompt="q")])
        await entered(old)
        swap = asyncio.create_task(service.swap(Path("new")))
        while service._hold is None:  # until the new weights wait for their turn
            await asyncio.sleep(0.001)
        after = service.submit([item("1"), item("3")])
        assert not swap.done(), "the old weights still owe somebody scores"
        old.gate.set()
        assert values([s async for s in before]) == [1, 2]
        assert values([s async for s in after]) == [1, 3]
        assert (before.weight_version, after.weight_version) == (0, 1)
        assert await swap == 1 == service.weight_version
        assert old.closed and service.ready
        assert shelf.alive_at_opening == [0, 0 if exclusive else 1]
        new = [output_of(one) for batch in shelf.scorers["new"].batches[1:] for one in batch]
        assert new == ["1", "3"], "an item is not shared between weights"

    swapping(body, exclusive)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(("folder", "reason"), [("bad", "no weights"), ("wrong", "wrong order")])
def test_a_swap_that_fails_leaves_the_old_weights(exclusive: bool, folder: str, reason: str) -> None:
    async def body(service: ScoringService, shelf: Shelf) -> None:
        with pytest.raises(SwapFailed, match=reason):
            await service.swap(Path(folder))
        assert service.weight_version == 0 and service.ready
        ticket = service.submit([item("1"), item("2")])
        assert values([s async for s in ticket]) == [1, 2]
        assert ticket.weight_version == 0
        assert shelf.opened == (["old", folder, "old"] if exclusive else ["old", folder])
        assert await service.swap(Path("new")) == 1, "the next one may succeed"

    swapping(body, exclusive)


def test_the_canary_can_be_asked_for_at_any_time_of_a_swap() -> None:
    async def body(service: ScoringService, shelf: Shelf) -> None:
        swap = asyncio.create_task(service.swap(Path("new")))
        while not swap.done():
            await service.check()
            await asyncio.sleep(0)
        assert await swap == 1
        assert await service.check() is None

    swapping(body, exclusive=True)


def test_a_swap_that_nobody_waits_for_is_finished() -> None:
    async def body(service: ScoringService, shelf: Shelf) -> None:
        swap = asyncio.create_task(service.swap(Path("new")))
        await asyncio.sleep(0)
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
        while service.weight_version == 0:
            await asyncio.sleep(0.001)
        assert values(await service.score([item("1")])) == [1]

    swapping(body, exclusive=False)


def test_two_swaps_come_one_after_the_other() -> None:
    async def body(service: ScoringService, shelf: Shelf) -> None:
        assert sorted(await asyncio.gather(service.swap(Path("a")), service.swap(Path("b")))) == [1, 2]
        assert service.weight_version == 2

    swapping(body, exclusive=False)
