"""Replicas behind one Engine: order kept, weights to all, one failure is the group's."""

import pytest

from rollouts.engines.base import Engine, EngineError, Request
from rollouts.engines.group import EngineGroup
from rollouts.types import WeightUpdate
from tests.rollouts.test_collector import PARAMS, ScriptedEngine


def test_results_are_those_of_one_engine_in_order() -> None:
    requests = [Request((i,), (1, 2)) for i in range(7)]
    engines = [ScriptedEngine() for _ in range(3)]
    group = EngineGroup(engines)
    assert isinstance(group, Engine)
    assert group.generate(requests, PARAMS) == ScriptedEngine().generate(requests, PARAMS)
    assert sorted(call for e in engines for call in e.calls) == [4, 4, 6]
    assert len(group.logprobs([(1, 2)] * 5)) == 5
    group.close()


def test_fewer_requests_than_engines() -> None:
    group = EngineGroup([ScriptedEngine() for _ in range(3)])
    assert len(group.generate([Request((1,), (5,))], PARAMS)) == 1
    assert group.generate([], PARAMS) == []


def test_weights_reach_every_engine_and_the_oldest_version_counts() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    group = EngineGroup(engines)
    assert group.load_weights(WeightUpdate(3, "file:v3")) == {"sync/load_s": 0.0}
    assert [e.current.version for e in engines] == [3, 3]
    engines[0].current = WeightUpdate(2, "file:v2")
    assert group.version() == 2


def test_one_failure_is_the_groups_after_all_have_ended() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    engines[1].fail_next = [EngineError("dead")]
    group = EngineGroup(engines)
    with pytest.raises(EngineError, match="dead"):
        group.generate([Request((1,), (5,)), Request((2,), (5,))], PARAMS)
    assert engines[0].calls == [1]
    group.rebuild()
    assert [e.rebuilds for e in engines] == [1, 1]


def test_a_group_needs_an_engine() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EngineGroup([])
