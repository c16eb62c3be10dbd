"""The proof after a weight update, on numbers chosen by hand."""

import math
from collections.abc import Callable

import pytest

from rollouts.engines.base import EngineError, WeightSyncError
from rollouts.engines.probe import SyncGuard, check_requests, check_sequences
from rollouts.types import WeightUpdate

IDS = (5, 6, 7)


def _nothing() -> None:
    """A load or a check that succeeds."""


def _sync(
    guard: SyncGuard,
    learner: tuple[float, ...],
    engine: tuple[float, ...],
    version: int = 1,
    load: Callable[[], None] = _nothing,
    verify: Callable[[], None] = _nothing,
) -> dict[str, float]:
    return guard.sync(WeightUpdate(version, "file:x", IDS, learner), load, lambda _: engine, verify)


def test_reports_the_largest_and_the_mean_gap() -> None:
    metrics = _sync(SyncGuard(0.1), (-1.0, -3.0), (-1.25, -3.125), version=4)
    assert (metrics["sync/probe_gap_max"], metrics["sync/probe_gap_mean"]) == (0.25, 0.1875)


def test_allows_a_gap_in_proportion_to_the_log_probabilities() -> None:
    """The learner's mean size is 2: a tolerance of 0.1 allows 0.1 * (1 + 2) = 0.3 a token."""
    assert _sync(SyncGuard(0.1), (-1.0, -3.0), (-1.25, -3.25))["sync/probe_gap_mean"] == 0.25
    with pytest.raises(WeightSyncError, match=r"by 0\.3125 nats a token, 0\.3 allowed"):
        _sync(SyncGuard(0.1), (-1.0, -3.0), (-1.3125, -3.3125))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_numbers_that_are_none_fail(value: float) -> None:
    with pytest.raises(WeightSyncError, match="disagree"):
        _sync(SyncGuard(10.0), (-1.0, -3.0), (-1.0, value))
    with pytest.raises(WeightSyncError, match="disagree"):
        _sync(SyncGuard(10.0), (-1.0, math.nan), (-1.0, -3.0))


def test_an_engine_that_stands_still_while_the_learner_moves_fails() -> None:
    guard = SyncGuard(0.1)
    _sync(guard, (-1.0, -3.0), (-1.0, -3.0))
    with pytest.raises(WeightSyncError, match=r"moved by 0\.01 nats since version 1"):
        _sync(guard, (-1.01, -3.0), (-1.0, -3.0), version=2)


def test_both_may_stand_still() -> None:
    guard = SyncGuard(0.1)
    _sync(guard, (-1.0, -3.0), (-1.0, -3.0))
    _sync(guard, (-1.0005, -3.0), (-1.0, -3.0), version=2)
    assert guard.version == 2


def test_a_failure_keeps_the_old_version_and_kills() -> None:
    guard = SyncGuard(0.1)
    _sync(guard, (-1.0, -3.0), (-1.0, -3.0))

    def fail() -> None:
        raise ValueError("the cache\nis stale")

    with pytest.raises(WeightSyncError, match="weight update 2 failed: the cache is stale; the engine must be rebuilt"):
        _sync(guard, (-2.0, -3.0), (-2.0, -3.0), version=2, verify=fail)
    assert guard.version == 1
    with pytest.raises(EngineError, match=r"dead \(weight update 2 failed: the cache is stale\); call rebuild"):
        guard.require_alive()
    guard.revive()
    guard.require_alive()
    assert guard.version == 0


def test_an_interrupt_passes_through_and_kills() -> None:
    guard = SyncGuard(0.1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sync(guard, (-1.0, -3.0), (-1.0, -3.0), load=interrupt)
    with pytest.raises(EngineError, match="dead"):
        guard.require_alive()


def test_a_probe_of_the_wrong_length_is_named() -> None:
    with pytest.raises(WeightSyncError, match="3 tokens and 3 log-probabilities"):
        _sync(SyncGuard(0.1), (-1.0, -3.0, -2.0), (-1.0, -3.0))


def test_requests_and_sequences_that_do_not_fit_are_named() -> None:
    check_requests([10, 90], 10, 100)
    check_sequences([1, 100], 100)
    with pytest.raises(ValueError, match="request 1: 91 prompt tokens and 10 new ones exceed the context of 100"):
        check_requests([10, 91], 10, 100)
    with pytest.raises(ValueError, match="request 0 has an empty prompt"):
        check_requests([0], 10, 100)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        check_requests([10], 0, 100)
    for lengths in ([1, 0], [1, 101]):
        with pytest.raises(ValueError, match=f"sequence 1 has {lengths[1]} tokens"):
            check_sequences(lengths, 100)
