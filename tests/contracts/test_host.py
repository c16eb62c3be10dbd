"""What hosting a part means, in this process and in a Ray actor alike; then what only a part elsewhere can do."""

import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cluster.host import Cluster, DeadlineExceeded, HostDied, HostError, Resources, connect

# Parts are defined here and pickled by reference: their processes find this module by its import root.
ENV = {"PYTHONPATH": str(Path(__file__).resolve().parents[__name__.count(".")])}
host_names = map("part{}".format, range(10_000))


class BadAnswer(ValueError):
    """Carries data beside its message, and is built from other arguments than those it shows."""

    def __init__(self, question: str, code: int) -> None:
        super().__init__(f"no answer to {question!r}")
        self.question, self.code = question, code

    def __reduce__(self) -> Any:
        return BadAnswer, (self.question, self.code)


class Unpicklable(RuntimeError):
    """Pickles, and then cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class Counter:
    """A part with state."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        if step == 0:
            raise ValueError("step must not be 0")
        self.value, self.step = start, step
        self.weight = torch.full((3,), float(start), dtype=torch.bfloat16)

    def add(self, times: int = 1) -> int:
        self.value += times * self.step
        return self.value

    def scale(self, array: np.ndarray) -> np.ndarray:
        array *= 2
        return array

    def tensor(self) -> torch.Tensor:
        return self.weight

    def fail(self, question: str) -> None:
        raise BadAnswer(question, code=7)

    def fail_oddly(self) -> None:
        raise Unpicklable("a", "b")

    def stop(self) -> None:
        next(iter(()))

    def nothing(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.weight = state["value"], state["weight"]

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def start_child(self) -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    def unsendable(self) -> Any:
        return (number for number in range(3))

    def say(self) -> None:
        print("from python")
        os.system("echo from a child")
        os.write(2, b"from the descriptor\n")

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def threads(self) -> int:
        return torch.get_num_threads()


def slow_counter() -> Counter:
    time.sleep(600)
    return Counter()


def save(part: Counter, path: Path, note: str) -> str:
    torch.save({"state": part.state_dict(), "note": note, "pid": os.getpid()}, path)
    return note.upper()


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def ray_cluster(log_dir: Path) -> Iterator[Cluster]:
    # More CPUs on the books than there may be cores: nobody is killed to make room for the next test's part.
    already = psutil.Process().children(recursive=True)  # other tests' helpers, such as a resource tracker
    cluster = connect("ray", num_cpus=64, log_dir=log_dir)
    yield cluster
    before = [process for process in psutil.Process().children(recursive=True) if process not in already]
    assert any("raylet" in " ".join(process.cmdline()) for process in before)
    cluster.close()
    cluster.close()
    assert not [process for process in before if process.is_running()]


@pytest.fixture(scope="module", params=["local", "ray"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    cluster: Cluster = request.getfixturevalue("ray_cluster") if request.param == "ray" else connect("local")
    return cluster


@pytest.fixture(scope="module")
def counter(cluster: Cluster) -> Counter:
    """One part for the tests that leave no trace in it: starting a process for each would take minutes."""
    return cluster.host(Counter, 5, step=2, name=next(host_names), env=ENV)


@pytest.fixture
def hosted(ray_cluster: Cluster) -> Any:
    return ray_cluster.host(Counter, 10, name=next(host_names), env=ENV, max_restarts=1)


def test_methods_take_and_give_values(counter: Counter) -> None:
    before = counter.add(times=0)
    assert counter.add() == before + 2
    assert counter.add(times=3) == before + 8
    assert counter.nothing() is None


def test_arrays_arrive_writable(counter: Counter) -> None:
    result = counter.scale(np.arange(4.0))
    result += 1  # what comes back can be written to as well
    np.testing.assert_array_equal(result, [1.0, 3.0, 5.0, 7.0])


def test_tensors_keep_type_and_value(counter: Counter) -> None:
    tensor = counter.tensor()
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [5.0, 5.0, 5.0]


def test_an_exception_keeps_its_type_message_and_data(counter: Counter) -> None:
    with pytest.raises(BadAnswer) as caught:
        counter.fail("why")
    assert type(caught.value) is BadAnswer
    assert str(caught.value) == "no answer to 'why'"
    assert (caught.value.question, caught.value.code) == ("why", 7)
    assert counter.nothing() is None, "an exception must not end the part"


def test_an_exception_of_construction_arrives_as_it_is(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match=r"^step must not be 0") as caught:
        cluster.host(Counter, step=0, name="refused", env=ENV)
    assert type(caught.value) is ValueError
    assert cluster.host(Counter, name="refused", env=ENV).add() == 1, "the name is free again"


def test_names_are_unique_and_fit_for_a_file(cluster: Cluster) -> None:
    cluster.host(Counter, name="unique", env=ENV)
    with pytest.raises(HostError, match="'unique' is taken"):
        cluster.host(Counter, name="unique", env=ENV)
    with pytest.raises(HostError, match="'a/b' is taken, or not fit"):
        cluster.host(Counter, name="a/b", env=ENV)


def test_an_unknown_method_is_an_attribute_error(cluster: Cluster, counter: Counter) -> None:
    with pytest.raises(AttributeError, match="multiply"):
        counter.multiply()  # type: ignore[attr-defined]
    assert not hasattr(counter, "multiply")
    with pytest.raises(AttributeError, match="multiply"):
        cluster.submit(counter, "multiply").result()


def test_apply_runs_where_the_part_lives(cluster: Cluster, counter: Counter, tmp_path: Path) -> None:
    assert cluster.apply(counter, save, tmp_path / "state.pt", "kept") == "KEPT"
    saved = torch.load(tmp_path / "state.pt")
    assert saved["pid"] == counter.pid()
    assert saved["state"]["value"] == counter.add(0)


def test_apply_takes_a_closure_and_passes_its_exception(cluster: Cluster, counter: Counter) -> None:
    factor = 3
    assert cluster.apply(counter, lambda part: part.step * factor) == 6
    with pytest.raises(ZeroDivisionError):
        cluster.apply(counter, lambda part: part.step / 0)


def test_state_makes_the_round_trip(cluster: Cluster) -> None:
    first = cluster.host(Counter, 3, name=next(host_names), env=ENV)
    first.add(4)
    second = cluster.host(functools.partial(Counter, step=5), name=next(host_names), env=ENV)
    second.load_state_dict(first.state_dict())
    assert second.add() == 12
    assert torch.equal(second.tensor(), torch.full((3,), 3.0, dtype=torch.bfloat16))


def test_submitted_calls_run_in_order_and_keep_their_own_answers(cluster: Cluster, counter: Counter) -> None:
    start = counter.add(0)
    calls = [cluster.submit(counter, "add", times=1) for _ in range(5)]
    failing = cluster.submit(counter, "fail", "when")
    last = cluster.submit(counter, "add")
    assert [call.result(60) for call in reversed(calls)] == [start + 2 * i for i in (5, 4, 3, 2, 1)]
    with pytest.raises(BadAnswer):
        failing.result(60)
    assert last.result(60) == start + 12
    assert last.done()
    assert last.result(60) == start + 12, "an answer can be read twice"


def test_a_part_that_lives_is_never_restarted(cluster: Cluster, counter: Counter) -> None:
    assert cluster.restarts(counter) == 0
    assert cluster.with_deadline(counter, 60.0).add(0) == counter.add(0)


def test_parts_run_at_the_same_time(ray_cluster: Cluster) -> None:
    first, second = (ray_cluster.host(Counter, name=next(host_names), env=ENV) for _ in range(2))
    assert len({os.getpid(), first.pid(), second.pid()}) == 3
    waiting = ray_cluster.submit(first, "sleep", 600.0)
    assert second.add() == 1, "a busy part does not hold up another one"
    assert not waiting.done()


def test_a_remote_exception_shows_where_it_came_from(ray_cluster: Cluster, hosted: Any, log_dir: Path) -> None:
    with pytest.raises(BadAnswer) as caught:
        hosted.fail("where")
    (note,) = caught.value.__notes__
    assert "in fail" in note and str(log_dir) in note
    assert "cluster/part.py" not in note, "only the part's own frames"
    with pytest.raises(HostError, match=r"^Unpicklable: ab"):
        hosted.fail_oddly()
    with pytest.raises(StopIteration):
        hosted.stop()


def test_what_cannot_be_sent_is_one_clear_error(ray_cluster: Cluster, hosted: Any) -> None:
    with pytest.raises(HostError, match=r"the arguments of add\(\) cannot be sent"):
        hosted.add(times=(n for n in ()))
    with pytest.raises(HostError, match="the result cannot be sent"):
        hosted.unsendable()
    with pytest.raises(HostError, match="a hosted part cannot be sent to another process"):
        ray_cluster.apply(hosted, max, hosted)
    assert hosted.add() == 11, "the part lives on"


def test_a_missed_deadline_kills_and_the_next_call_restarts_once(ray_cluster: Cluster, hosted: Any) -> None:
    pid, child = hosted.pid(), hosted.start_child()
    assert hosted.add() == 11
    with pytest.raises(DeadlineExceeded, match=r"sleep\(\) within 0\.2 s and was killed; its log: .*\.log$"):
        ray_cluster.with_deadline(hosted, 0.2).sleep(600.0)
    assert not psutil.pid_exists(pid)
    assert _gone(child), "what the part had started ends with it"
    assert hosted.add() == 11, "built anew: the state is the caller's to put back"
    assert hosted.restarts == 1
    with pytest.raises(HostDied, match=r"died before it had answered die\(\)"):
        hosted.die()
    with pytest.raises(HostDied, match="has used its 1 restarts"):
        hosted.add()


def test_death_reaches_every_waiting_call_and_names_the_part_and_log(ray_cluster: Cluster, log_dir: Path) -> None:
    part = ray_cluster.host(Counter, name="doomed", env=ENV, max_restarts=1)
    child = part.start_child()
    dying, waiting = ray_cluster.submit(part, "die"), ray_cluster.submit(part, "add")
    for call in (dying, waiting):
        with pytest.raises(HostDied, match=r"part 'doomed' died .*; its log: ") as caught:
            call.result(60)
        assert str(log_dir / "doomed.log") in str(caught.value)
        assert "\n" not in str(caught.value)
    assert _gone(child)
    assert part.add() == 1
    with pytest.raises(HostDied):
        waiting.result(60)
    assert part.add() == 2, "a call of the former life says nothing about this one"


def test_a_start_has_a_deadline(ray_cluster: Cluster) -> None:
    with pytest.raises(DeadlineExceeded, match=r"part 'sleepy' was not ready within 8 s"):
        ray_cluster.host(slow_counter, name="sleepy", env=ENV, start_deadline_s=8)


def test_a_part_that_fits_nowhere_is_refused(ray_cluster: Cluster) -> None:
    with pytest.raises(HostError, match=r"part 'huge' asks for 65 CPU and this machine's Ray has 64"):
        ray_cluster.host(Counter, name="huge", resources=Resources(num_cpus=65))
    with pytest.raises(HostError, match="asks for 1 robot_arm"):
        ray_cluster.host(Counter, name="arm", resources=Resources(custom={"robot_arm": 1}))


def test_a_local_ray_is_reachable_from_this_machine_only(ray_cluster: Cluster) -> None:
    family = psutil.Process().children(recursive=True)
    sockets = [one for process in family for one in process.net_connections("inet")]
    addresses = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    assert addresses and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_output_of_every_kind_goes_to_the_log(ray_cluster: Cluster, log_dir: Path, capfd: Any) -> None:
    part = ray_cluster.host(Counter, name="speaker", env=ENV)
    part.say()
    text = (log_dir / "speaker.log").read_text()
    assert {"from python", "from a child", "from the descriptor"} <= set(text.splitlines())
    assert "from" not in "".join(capfd.readouterr())


def test_the_environment_is_the_parts_own(ray_cluster: Cluster) -> None:
    env = {**ENV, "OMP_NUM_THREADS": "1", "POLESTAR_TEST": "set"}
    part = ray_cluster.host(Counter, name=next(host_names), env=env)
    assert part.environment("POLESTAR_TEST") == "set"
    assert part.threads() == 1
    assert "POLESTAR_TEST" not in os.environ


def test_a_part_may_use_every_core_whatever_it_has_booked(ray_cluster: Cluster, monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    resources = Resources(num_cpus=0.5)
    part = ray_cluster.host(Counter, name=next(host_names), env=ENV, resources=resources)
    assert part.environment("OMP_NUM_THREADS") == str(len(os.sched_getaffinity(0)))


def _gone(pid: int) -> bool:
    """Polls generously: a killed orphan is reaped by whoever inherits it."""
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False
