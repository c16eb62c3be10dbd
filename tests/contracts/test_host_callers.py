"""Hosted parts that call each other, in this process and through Ray alike; then what a fault does to a caller."""

import atexit
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.host import Cluster, DeadlineExceeded, HostDied, HostError, connect

# Parts are defined here and pickled by reference: their processes find this module by its import root.
ENV = {"PYTHONPATH": str(Path(__file__).resolve().parents[__name__.count(".")])}
host_names = map("called{}".format, range(10_000))


class BadQuestion(ValueError):
    """Carries data beside its message."""

    def __init__(self, question: str, code: int) -> None:
        super().__init__(f"no answer to {question!r}")
        self.question, self.code = question, code

    def __reduce__(self) -> Any:
        return BadQuestion, (self.question, self.code)


class Model:
    """What others call. ``parties`` threads meet in it."""

    def __init__(self, parties: int = 2) -> None:
        self._meeting = threading.Barrier(parties)
        self._asleep = 0

    def double(self, array: np.ndarray, *, plus: float = 0.0) -> np.ndarray:
        return 2 * array + plus

    def fail(self, question: str) -> None:
        raise BadQuestion(question, code=7)

    def meet(self, timeout_s: float = 60.0) -> int:
        return self._meeting.wait(timeout_s)

    def pid(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        self._asleep += 1
        time.sleep(600)

    def asleep(self) -> int:
        return self._asleep

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave_a_note(self, path: Path) -> None:
        atexit.register(path.write_text, "ended in order")


class User:
    """Lives elsewhere, and passes on what it is asked to a model."""

    def __init__(self, model: Any, first: str | None = None) -> None:
        self._model = model
        if first is not None:
            getattr(model, first)()

    def relay(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._model, method)(*args, **kwargs)

    def ask(self, model: Any, method: str) -> Any:
        return getattr(model, method)()

    def offers(self, name: str) -> bool:
        return hasattr(self._model, name)

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def ray_cluster(log_dir: Path) -> Iterator[Cluster]:
    cluster = connect("ray", num_cpus=64, log_dir=log_dir)
    several = cluster.host(Model, name="several", env=ENV, max_concurrency=3)
    several.leave_a_note(log_dir / "note")
    yield cluster
    cluster.close()
    assert (log_dir / "note").read_text() == "ended in order", "with several threads as with one"
    with pytest.raises(HostError, match="part 'several' is closed"):
        cluster.caller(several)


@pytest.fixture(scope="module", params=["local", "ray"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    cluster: Cluster = request.getfixturevalue("ray_cluster") if request.param == "ray" else connect("local")
    return cluster


@pytest.fixture(scope="module")
def model(cluster: Cluster) -> Model:
    return cluster.host(Model, name=next(host_names), env=ENV, max_concurrency=2)


@pytest.fixture(scope="module")
def user(cluster: Cluster, model: Model) -> User:
    return cluster.host(User, cluster.caller(model), name=next(host_names), env=ENV)


def test_one_part_calls_another(user: User, model: Model) -> None:
    found = user.relay("double", np.arange(3.0), plus=1.0)
    np.testing.assert_array_equal(found, [1.0, 3.0, 5.0])
    assert user.relay("pid") == model.pid()


def test_a_caller_is_an_argument_like_any_other(cluster: Cluster, user: User, model: Model) -> None:
    caller = cluster.caller(model)
    assert user.ask(caller, "pid") == model.pid()
    assert caller.pid() == model.pid(), "whoever gives it out may use it too"
    held = cluster.host(lambda: User(caller), name=next(host_names), env=ENV)
    assert held.relay("pid") == model.pid()


def test_an_exception_keeps_its_type_message_and_data(user: User) -> None:
    with pytest.raises(BadQuestion, match=r"^no answer to 'why'") as caught:
        user.relay("fail", "why")
    assert (caught.value.question, caught.value.code) == ("why", 7)
    assert user.relay("double", np.ones(1)).tolist() == [2.0]


def test_a_caller_has_the_parts_methods_and_no_others(user: User) -> None:
    assert user.offers("double") and not user.offers("halve")
    with pytest.raises(AttributeError, match="halve"):
        user.relay("halve")


def test_several_callers_are_in_a_part_at_once(cluster: Cluster, user: User, model: Model) -> None:
    other = cluster.host(User, cluster.caller(model), name=next(host_names), env=ENV)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(each.relay, "meet") for each in (user, other)]
        assert {call.result() for call in calls} == {0, 1}


def test_less_than_one_at_a_time_is_refused(cluster: Cluster) -> None:
    with pytest.raises(HostError, match="max_concurrency must be at least 1, got 0"):
        cluster.host(Model, name="idle", max_concurrency=0)


def test_by_default_a_hosted_part_serves_one_at_a_time(ray_cluster: Cluster) -> None:
    part = ray_cluster.host(Model, name=next(host_names), env=ENV)
    caller = ray_cluster.caller(part)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(caller.meet, 0.1) for _ in range(2)]
        assert all(isinstance(call.exception(), threading.BrokenBarrierError) for call in calls)


def test_only_a_hosted_part_can_be_called_from_elsewhere(ray_cluster: Cluster) -> None:
    with pytest.raises(HostError, match=r"^Model lives in this process"):
        ray_cluster.caller(Model())


def test_death_reaches_who_waits_elsewhere_and_restarts_are_the_hosts(ray_cluster: Cluster, log_dir: Path) -> None:
    part = ray_cluster.host(Model, name="judge", env=ENV, max_concurrency=2, max_restarts=1)
    caller = ray_cluster.caller(part)
    user = ray_cluster.host(User, caller, name="asking", env=ENV)
    pid = part.pid()
    waiting = ray_cluster.submit(user, "relay", "sleep")
    _until(lambda: caller.asleep() == 1)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HostDied) as caught:
        waiting.result(60)
    what = r"part 'judge' died before it had answered sleep\(\) \(.*\); its log: "
    assert re.fullmatch(what + re.escape(str(log_dir / "judge.log")), str(caught.value)), "one line"
    assert "raised in part 'asking'" in caught.value.__notes__[0]
    with pytest.raises(HostDied, match=r"^part 'judge' died before it had answered pid\(\)"):
        part.pid()  # the host learns of it, and builds the part again at the next call
    assert part.pid() != pid and ray_cluster.restarts(part) == 1
    for _ in range(2):
        with pytest.raises(HostDied, match=r"^part 'judge' died before it had answered pid\(\)"):
            user.relay("pid")  # a caller is of one life
    assert user.ask(ray_cluster.caller(part), "pid") == part.pid()
    assert ray_cluster.restarts(user) == 0, "who asked has lived on"


def test_a_missed_deadline_elsewhere_gives_the_call_up_and_leaves_the_part(ray_cluster: Cluster) -> None:
    part = ray_cluster.host(Model, name="slow", env=ENV, max_concurrency=2)
    hasty = ray_cluster.caller(ray_cluster.with_deadline(part, 0.2))
    # Met in a construction, so that it could be taken for a start that takes too long.
    with pytest.raises(DeadlineExceeded, match=r"^part 'slow' did not answer sleep\(\) within 0\.2 s; its log: .*slow"):
        ray_cluster.host(User, hasty, first="sleep", name="hasty", env=ENV)
    _until(lambda: part.asleep() == 1)
    assert ray_cluster.restarts(part) == 0


def _until(reached: Callable[[], bool]) -> None:
    """Polls; a test that never gets there is ended by its time limit."""
    while not reached():
        time.sleep(0.01)
