"""The scheduler against traces written by hand, and against a model that looks back over the whole history."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.envs.api import EnvError
from rollouts.envs.reset_free import (
    Cause,
    EnvControls,
    ResetFreeConfig,
    ResetFreeScheduler,
    Start,
    ask_person,
)

TASKS = ("there", "back")


class Recorder:
    """Controls that write down what they are told; the observation is how many orders there have been."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def hard_reset(self, task: str, seed: int, cause: Cause) -> Any:
        return self._seen(f"reset {task} {seed} {cause}")

    def switch(self, task: str) -> Any:
        return self._seen(f"switch {task}")

    def home(self) -> Any:
        return self._seen("home")

    def _seen(self, line: str) -> Any:
        self.log.append(line)
        return {"state": np.array([len(self.log)], np.float32)}, {}


def never(task: str, observation: Any, info: Any) -> bool:
    return False


def play(outcomes: Sequence[tuple[bool, int]], **config: Any) -> tuple[list[str], ResetFreeScheduler, Recorder]:
    """Attempts with these outcomes, and one more that is only begun: "task" or "task<cause" for each."""
    controls = Recorder()
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(**config), controls)
    starts: list[Start] = []
    for number, (success, steps) in enumerate(outcomes):
        starts.append(scheduler.start(number, never))
        scheduler.finish(success, steps)
    starts.append(scheduler.start(len(outcomes), never))
    return [s.task + (f"<{s.cause}" if s.cause else "") for s in starts], scheduler, controls


def test_success_switches_and_nothing_is_reset_but_the_first_scene() -> None:
    starts, scheduler, _ = play([(True, 3), (True, 4), (True, 5)])
    assert starts == ["there<first", "back", "there", "back"]
    counts = scheduler.counts
    assert (counts.episodes, counts.steps, counts.successes, counts.hard_resets, counts.interventions) == (
        3,
        12,
        3,
        1,
        0,
    )


def test_a_failure_is_tried_again_and_the_third_in_a_row_calls_for_help() -> None:
    starts, scheduler, _ = play([(False, 9), (False, 9), (True, 2), *[(False, 9)] * 4], stuck_after=3)
    assert starts == ["there<first", "there", "there", "back", "back", "back", "back<stuck", "back"]
    assert (scheduler.counts.interventions, scheduler.counts.hard_resets) == (1, 2)


def test_a_timeout_may_switch_and_failures_of_both_tasks_count_together() -> None:
    starts, _, _ = play([(False, 9)] * 4, on_timeout="switch", stuck_after=3)
    assert starts == ["there<first", "back", "there", "back<stuck", "there"]


def test_never_stuck_when_it_is_turned_off() -> None:
    starts, scheduler, _ = play([(False, 1)] * 20, stuck_after=0)
    assert starts == ["there<first"] + ["there"] * 20
    assert scheduler.counts.interventions == 0


def test_planned_resets_are_no_interventions_even_when_stuck_at_the_same_moment() -> None:
    starts, scheduler, _ = play([(False, 1)] * 4, stuck_after=2, reset_every_episodes=2)
    assert starts == ["there<first", "there", "there<episodes", "there", "there<episodes"]
    assert (scheduler.counts.hard_resets, scheduler.counts.interventions) == (3, 0)


def test_steps_are_counted_from_the_last_reset_and_a_reset_waits_for_the_end() -> None:
    starts, _, _ = play([(True, 6), (True, 6), (True, 9), (True, 1)], reset_every_steps=10)
    assert starts == ["there<first", "back", "there<steps", "back", "there<steps"]


def test_the_arm_goes_home_before_the_task_changes() -> None:
    _, _, controls = play([(True, 1), (False, 1)], stuck_after=1)
    assert controls.log == ["reset there 0 first", "home", "switch back", "reset back 2 stuck"]
    _, _, controls = play([(True, 1), (False, 1)], homing=False)
    assert controls.log == ["reset there 0 first", "switch back", "switch back"]


def test_what_is_done_already_is_passed_over_and_counted() -> None:
    controls = Recorder()
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), controls)
    assert scheduler.start(0, never).task == "there"
    scheduler.finish(True, 3)
    start = scheduler.start(1, lambda task, observation, info: task == "back")
    assert (start.task, start.skipped, start.cause, start.instant) == ("there", ("back",), None, False)
    assert controls.log[1:] == ["home", "switch back", "switch there"]
    assert start.observation["state"].item() == len(controls.log)
    assert (scheduler.counts.instant, scheduler.counts.episodes) == (1, 1)
    scheduler.finish(True, 3)
    assert scheduler.start(2, never).task == "back"


def test_when_all_is_done_the_scene_is_reset_and_only_then_begun() -> None:
    controls = Recorder()
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), controls)
    scheduler.start(0, never)
    scheduler.finish(True, 3)
    start = scheduler.start(7, lambda task, observation, info: not any("all_done" in line for line in controls.log))
    assert (start.task, start.skipped, start.cause, start.instant) == ("back", ("back", "there"), Cause.ALL_DONE, False)
    assert controls.log[1:] == ["home", "switch back", "switch there", "switch back", "reset back 7 all_done"]
    assert scheduler.counts.interventions == 1


def test_a_judge_that_calls_everything_done_cannot_keep_a_person_busy() -> None:
    controls = Recorder()
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), controls)
    start = scheduler.start(0, lambda *_: True)
    assert (start.task, start.cause, start.instant) == ("there", Cause.FIRST, True)
    assert controls.log == ["reset there 0 first", "switch back", "switch there"]
    scheduler.finish(True, 1)
    start = scheduler.start(1, lambda *_: True)
    assert (start.task, start.cause, start.instant) == ("back", Cause.ALL_DONE, True)
    assert (scheduler.counts.hard_resets, scheduler.counts.instant) == (2, 6)


def test_an_environment_that_cannot_go_on_is_reset() -> None:
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), Recorder())
    scheduler.start(0, never)
    scheduler.finish(True, 3, over=True)
    start = scheduler.start(1, never)
    assert (start.task, start.cause, scheduler.counts.interventions) == ("back", Cause.OVER, 1)
    scheduler.finish(True, 3)
    assert scheduler.start(2, never).cause is None


def test_the_task_to_begin_with_can_be_named() -> None:
    assert ResetFreeScheduler(TASKS, ResetFreeConfig(), Recorder(), "back").start(0, never).task == "back"


configs = st.fixed_dictionaries(
    {
        "on_timeout": st.sampled_from(["stay", "switch"]),
        "stuck_after": st.integers(0, 4),
        "reset_every_episodes": st.integers(0, 6),
        "reset_every_steps": st.integers(0, 25),
        "homing": st.booleans(),
    }
)
histories = st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.booleans()), max_size=30)


@given(st.integers(1, 3), histories, configs)
def test_the_scheduler_agrees_with_a_look_back_over_the_history(
    tasks: int, history: list[tuple[bool, int, bool]], config: dict[str, Any]
) -> None:
    names = [f"task{i}" for i in range(tasks)]
    scheduler = ResetFreeScheduler(names, ResetFreeConfig(**config), Recorder())
    last = 0
    for now, (success, steps, over) in enumerate(history):
        start = scheduler.start(now, never)
        since = history[last:now]
        moves = sum(s or config["on_timeout"] == "switch" for s, _, _ in history[:now])
        assert start.task == names[moves % tasks]
        due = {
            "first": now == 0,
            "episodes": 0 < config["reset_every_episodes"] <= len(since),
            "steps": 0 < config["reset_every_steps"] <= sum(n for _, n, _ in since),
            "over": now > 0 and history[now - 1][2],
            "stuck": 0 < config["stuck_after"] <= len(since)
            and not any(s for s, _, _ in since[len(since) - config["stuck_after"] :]),
        }
        expected = next((cause for cause, is_due in due.items() if is_due), None)
        assert start.cause == expected
        if expected:
            last = now
        scheduler.finish(success, steps, over)
    counts = scheduler.counts
    assert (counts.episodes, counts.steps) == (len(history), sum(n for _, n, _ in history))
    assert counts.successes == sum(s for s, _, _ in history)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_nothing_done_is_begun_unless_it_is_marked(history: list[tuple[bool, bool, bool]]) -> None:
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), Recorder())
    passed = 0
    for number, (there, back, success) in enumerate(history):
        done = {"there": there, "back": back}
        start = scheduler.start(number, lambda task, observation, info, done=done: done[task])
        assert done[start.task] == start.instant == (there and back)
        assert all(done[task] for task in start.skipped)
        passed += len(start.skipped)
        scheduler.finish(success, 1)
    assert scheduler.counts.instant == passed


@given(histories, configs, st.integers(0, 30))
def test_a_copy_made_at_any_time_goes_on_alike(
    history: list[tuple[bool, int, bool]], config: dict[str, Any], cut: int
) -> None:
    one = ResetFreeScheduler(TASKS, ResetFreeConfig(**config), Recorder())
    other = ResetFreeScheduler(TASKS, ResetFreeConfig(**config), Recorder())
    for now, (success, steps, over) in enumerate(history):
        if now == cut:
            other.load_state_dict(one.state_dict())
        start = one.start(now, never)
        one.finish(success, steps, over)
        if now >= cut:
            again = other.start(now, never)
            assert (again.task, again.cause) == (start.task, start.cause)
            other.finish(success, steps, over)
    if cut < len(history):
        assert other.state_dict() == one.state_dict()


def test_interventions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        play([(False, 1)] * 3)
    assert [r.getMessage() for r in caplog.records] == [
        "intervention 1 at there: too many attempts in a row have failed"
    ]


def test_calls_out_of_order_are_refused() -> None:
    scheduler = ResetFreeScheduler(TASKS, ResetFreeConfig(), Recorder())
    with pytest.raises(EnvError, match="start an attempt"):
        scheduler.finish(True, 1)
    scheduler.start(0, never)
    with pytest.raises(EnvError, match="finish the last"):
        scheduler.start(1, never)
    with pytest.raises(EnvError, match="between attempts"):
        scheduler.state_dict()


@pytest.mark.parametrize(
    "config", [{"max_steps": 0}, {"stuck_after": -1}, {"reset_every_episodes": -1}, {"reset_every_steps": -1}]
)
def test_numbers_without_a_meaning_are_refused(config: dict[str, int]) -> None:
    with pytest.raises(EnvError, match=next(iter(config))):
        ResetFreeConfig(**config)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tasks", "first"), [((), None), (("a", "a"), None), (("a", "b"), "c")])
def test_tasks_that_cannot_be_told_apart_are_refused(tasks: tuple[str, ...], first: str | None) -> None:
    with pytest.raises(EnvError, match="different names"):
        ResetFreeScheduler(tasks, ResetFreeConfig(), Recorder(), first)


class Scene:
    """As much of an environment as controls need."""

    def reset(self, **how: Any) -> Any:
        return {"state": np.zeros(1, np.float32)}, how


def test_a_person_is_asked_before_the_scene_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "")
    controls = EnvControls(Scene(), ask_person)  # type: ignore[arg-type]
    _, how = controls.hard_reset("there", 5, Cause.STUCK)
    assert how == {"seed": 5, "options": {"task": "there"}}
    assert asked == [
        "too many attempts in a row have failed: please put the scene to where 'there' begins, then press Enter "
    ]


def test_every_cause_has_words() -> None:
    assert len({cause.message for cause in Cause}) == len(Cause)
