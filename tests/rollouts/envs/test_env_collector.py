"""The collector of episodes: how much, by whom judged, how counted, and that a resumed run is the same run."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.protocols import Collector
from rollouts.envs.api import EnvError
from rollouts.envs.collector import EnvCollectConfig, EnvCollector
from rollouts.envs.experts import expert
from rollouts.envs.make import make_env
from rollouts.envs.point import TASKS, PointScene
from rollouts.envs.reset_free import ResetFreeConfig
from rollouts.envs.rollout import Acting, chain, from_hard_resets
from rollouts.envs.types import STATE, Action, Detection, Episode, Observation, Source, Task
from rollouts.types import WeightUpdate


class Scripted:
    """An expert, less sure the smaller ``skill`` is: it acts with that probability, and else at random."""

    def __init__(self, tasks: tuple[Task, ...] = TASKS, skill: float = 1.0) -> None:
        self._experts = {task.name: expert(task.name, 0.1) for task in tasks}
        self._skill = skill
        self.loaded: list[Path] = []

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        for one in self._experts.values():
            one.reset(seed)

    def act(self, observation: Observation, task: Task) -> Action:
        action = self._experts[task.name].act(observation, task)
        random = self._rng.uniform(-1, 1, len(action)).astype(np.float32)
        return action if self._rng.random() < self._skill else random

    def load(self, path: Path) -> None:
        self.loaded.append(path)


class Always:
    """The same action for ever."""

    def __init__(self, *action: float) -> None:
        self._action = np.array(action, np.float32)

    def reset(self, seed: int) -> None:
        pass

    def act(self, observation: Observation, task: Task) -> Action:
        return self._action


class Plan:
    """A detector that says, after each action of each episode, what a test wrote down; nothing at a start."""

    def __init__(self, episodes: Sequence[Sequence[bool]]) -> None:
        self._episodes = list(episodes)
        self._left: list[bool] = []
        self.tasks: list[str] = []

    def reset(self, task: Task) -> None:
        self._left = list(self._episodes.pop(0))
        self.tasks.append(task.name)

    def detect(self, observation: Observation) -> Detection:
        said = self._left.pop(0)
        return Detection(said, 0.9 if said else 0.25)

    def at_rest(self, observation: Observation, task: Task) -> bool:
        return False


def collector(policy: Any = None, **how: Any) -> EnvCollector:
    config = EnvCollectConfig(**{"seed": 0, **({} if "decisions" in how else {"episodes": 4}), **_split(how)})
    reset_free = ResetFreeConfig(**{"max_steps": 30, **how.pop("reset_free", {})})
    return EnvCollector(how.pop("env", None) or PointScene(), policy or Scripted(), config, reset_free, **how)


def _split(how: dict[str, Any]) -> dict[str, Any]:
    return {name: how.pop(name) for name in ("episodes", "decisions", "seed", "collector") if name in how}


def assert_same(one: Sequence[Episode], other: Sequence[Episode]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.task, a.terminated, a.truncated, a.metadata) == (
            b.id,
            b.task,
            b.terminated,
            b.truncated,
            b.metadata,
        )
        for name in ("actions", "rewards", "success", "detected"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for key in a.observations:
            np.testing.assert_array_equal(a.observations[key], b.observations[key])


def test_so_many_episodes_are_whole_and_alternate() -> None:
    part: Collector[Episode] = collector(episodes=5)
    episodes, metrics = part.collect(1)
    assert [e.task.name for e in episodes] == ["there", "back", "there", "back", "there"]
    assert [e.id for e in episodes] == [f"online-0-0-{n:06d}" for n in range(5)]
    for e in episodes:
        assert e.observations[STATE].shape == (len(e) + 1, 8)
        assert e.actions.shape == (len(e), 2)
        assert e.rewards.shape == e.success.shape == e.detected.shape == (len(e),)
        assert (e.terminated, e.truncated, e.succeeded, e.source) == (True, False, True, Source.POLICY)
        assert e.success.tolist() == [False] * (len(e) - 1) + [True]
        assert e.rewards.tolist() == [-1.0] * (len(e) - 1) + [0.0]
        assert np.isnan(e.detected).all()
    assert [e.metadata["hard_reset"] for e in episodes] == [True, False, False, False, False]
    assert metrics["collect/episodes"] == 5
    assert metrics["collect/decisions"] == sum(len(e) for e in episodes)
    assert metrics["collect/train_success"] == metrics["collect/train_success.back"] == 1.0
    assert metrics["collect/episode_length.back"] == np.mean([len(e) for e in episodes[1::2]])
    assert "collect/detected_success" not in metrics


def test_so_many_decisions_are_rounded_up_to_whole_episodes() -> None:
    episodes, metrics = collector(decisions=25).collect(1)
    lengths = [len(e) for e in episodes]
    assert sum(lengths) >= 25 > sum(lengths[:-1])
    assert metrics["collect/decisions"] == sum(lengths)
    assert all(e.terminated or e.truncated for e in episodes)


def test_an_attempt_that_runs_out_of_time_is_truncated_and_help_is_counted() -> None:
    part = collector(Always(0, 0), episodes=6, reset_free={"max_steps": 5, "stuck_after": 2})
    episodes, metrics = part.collect(1)
    assert {(len(e), e.terminated, e.truncated) for e in episodes} == {(5, False, True)}
    assert [e.metadata["cause"] for e in episodes] == ["first", "", "stuck", "", "stuck", ""]
    assert (metrics["collect/hard_resets"], metrics["collect/interventions"]) == (3, 2)
    assert metrics["collect/interventions_per_100_episodes"] == pytest.approx(100 * 2 / 6)
    _, metrics = part.collect(2)
    # The seventh to the twelfth: the second failure in a row comes before the 7th, the 9th and the 11th.
    assert (metrics["collect/interventions"], metrics["collect/interventions_total"]) == (3, 5)
    assert metrics["collect/interventions_per_100_episodes"] == pytest.approx(100 * 5 / 12)


def test_the_detector_ends_episodes_and_the_truth_is_written_down() -> None:
    # The block stays where "there" begins, which is where "back" has to bring it: 3 + 4 decisions at what is not done,
    # with one false positive, and 2 at what is, with one positive missing.
    plan = Plan([[False, False, True], [False, True], [False] * 4])
    part = collector(Always(0, 0), episodes=3, reset_free={"max_steps": 4}, detector=plan)
    episodes, metrics = part.collect(1)
    assert plan.tasks == ["there", "back", "there"]
    assert [(len(e), e.terminated, e.truncated, e.succeeded) for e in episodes] == [
        (3, True, False, False),
        (2, True, False, True),
        (4, False, True, False),
    ]
    np.testing.assert_allclose(episodes[0].detected, [0.25, 0.25, 0.9])
    assert metrics["collect/train_success"] == pytest.approx(1 / 3)
    assert metrics["collect/detected_success"] == pytest.approx(2 / 3)
    assert metrics["collect/detected_success.back"] == 1.0
    assert metrics["collect/false_positive_rate"] == pytest.approx(1 / 7)
    assert metrics["collect/false_negative_rate"] == metrics["collect/precision"] == pytest.approx(1 / 2)
    assert metrics["collect/precision.there"] == 0.0
    assert "collect/false_positive_rate.back" not in metrics


def test_what_the_detector_misses_goes_on() -> None:
    class Blind:
        def reset(self, task: Task) -> None:
            pass

        def detect(self, observation: Observation) -> Detection:
            return Detection(False, 0.0)

        def at_rest(self, observation: Observation, task: Task) -> bool:
            return False

    episodes, metrics = collector(episodes=1, detector=Blind()).collect(1)
    assert (len(episodes[0]), episodes[0].terminated, episodes[0].truncated) == (30, False, True)
    assert episodes[0].success.any()
    assert metrics["collect/false_negative_rate"] == 1.0
    assert (metrics["collect/false_positive_rate"], metrics["collect/detected_success"]) == (0.0, 0.0)
    assert "collect/precision" not in metrics


def test_the_detector_also_decides_what_is_done_at_a_start() -> None:
    class Eager:
        """Calls "there" done whenever it is asked."""

        def reset(self, task: Task) -> None:
            self.task = task

        def detect(self, observation: Observation) -> Detection:
            return Detection(self.at_rest(observation, self.task), 1.0)

        def at_rest(self, observation: Observation, task: Task) -> bool:
            return task.name == "there"

    episodes, metrics = collector(episodes=2, detector=Eager()).collect(1)
    assert [e.task.name for e in episodes] == ["back", "back"]
    assert episodes[0].metadata["skipped"] == ["there"]
    assert metrics["collect/instant"] == 1


def test_how_the_work_is_cut_changes_nothing_and_seeds_change_everything() -> None:
    at_once, _ = collector(Scripted(skill=0.5), episodes=6).collect(1)
    part = collector(Scripted(skill=0.5), episodes=2)
    assert_same(at_once, [e for step in (1, 2, 3) for e in part.collect(step)[0]])
    for other in ({"seed": 1}, {"collector": 1}):
        differs, _ = collector(Scripted(skill=0.5), episodes=6, **other).collect(1)
        assert all(not np.array_equal(a.actions, b.actions) for a, b in zip(at_once, differs, strict=True))


@pytest.mark.parametrize("name", ["point", "metaworld:window", "gym:Pendulum-v1"])
def test_a_resumed_run_is_the_same_run_to_the_bit(name: str) -> None:
    def build() -> EnvCollector:
        env = make_env(name, success="never")
        single = len(env.tasks) == 1
        policy = Always(0.3) if single else Scripted(env.tasks, skill=0.6)
        return collector(
            policy,
            env=env,
            episodes=3,
            reset_free={"max_steps": 25, "stuck_after": 2, "reset_every_episodes": int(single)},
        )

    whole, first, second = build(), build(), build()
    expected = [whole.collect(step)[0] for step in (1, 2)]
    assert_same(first.collect(1)[0], expected[0])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    episodes, metrics = second.collect(2)
    assert_same(episodes, expected[1])
    assert metrics["collect/episodes_total"] == 6
    for part in (whole, first, second):
        part.close()


def test_a_collector_that_has_done_nothing_can_be_saved() -> None:
    fresh = collector()
    fresh.load_state_dict(collector().state_dict())
    assert_same(fresh.collect(1)[0], collector().collect(1)[0])


def test_weights_come_from_a_file_and_episodes_name_their_version(tmp_path: Path) -> None:
    policy = Scripted()
    part = collector(policy, episodes=1)
    assert part.collect(1)[0][0].policy_version == 0
    path = tmp_path / "the weights.safetensors"
    assert part.load_weights(WeightUpdate(7, path.as_uri())) == {"sync/version": 7}
    assert policy.loaded == [path]
    assert part.collect(2)[0][0].policy_version == 7
    assert part.state_dict()["version"] == 7


def test_weights_that_cannot_be_loaded_are_refused() -> None:
    with pytest.raises(EnvError, match="Always has no weights to load"):
        collector(Always(0, 0)).load_weights(WeightUpdate(1, "file:/x"))
    with pytest.raises(EnvError, match="from a file, not from 'nccl:x'"):
        collector().load_weights(WeightUpdate(1, "nccl:x"))


@pytest.mark.parametrize("action", [(1.5, 0.0), (float("nan"), 0.0)])
def test_an_action_out_of_bounds_is_the_policys_fault(action: tuple[float, float]) -> None:
    with pytest.raises(EnvError, match=r"each within \[-1, 1\]"):
        collector(Always(*action)).collect(1)


@pytest.mark.parametrize("limits", [{}, {"episodes": 2, "decisions": 3}, {"episodes": 0}, {"decisions": -1}])
def test_a_step_has_one_limit(limits: dict[str, int]) -> None:
    with pytest.raises(EnvError, match="set one of the two"):
        EnvCollectConfig(seed=0, **limits)  # type: ignore[arg-type]


def test_evaluation_from_hard_resets_has_each_task_as_often() -> None:
    acting = Acting(PointScene(), Scripted(), policy_version=3)
    episodes = from_hard_resets(acting, episodes=3, max_steps=30, seed=1)
    assert [e.task.name for e in episodes] == ["there"] * 3 + ["back"] * 3
    assert len({e.id for e in episodes}) == 6
    assert all(e.metadata["hard_reset"] and e.policy_version == 3 for e in episodes)
    assert_same(episodes, from_hard_resets(acting, episodes=3, max_steps=30, seed=1))
    only = from_hard_resets(acting, episodes=3, max_steps=30, seed=1, tasks=["back"])
    assert_same(only, episodes[3:])


def test_a_chain_is_reset_once_a_life_and_never_helped() -> None:
    config = ResetFreeConfig(max_steps=4, stuck_after=1, reset_every_episodes=1)
    episodes = chain(Acting(PointScene(), Always(0, 0)), lives=2, episodes=5, config=config, seed=0)
    assert [e.metadata["hard_reset"] for e in episodes] == [True, False, False, False, False] * 2
    assert [e.metadata["life"] for e in episodes] == [0] * 5 + [1] * 5
    assert [e.task.name for e in episodes] == ["there"] * 5 + ["back"] * 5


def test_a_detector_may_watch_without_deciding() -> None:
    plan = Plan([])
    plan.detect = lambda observation: Detection(True, 0.75)  # type: ignore[method-assign]
    plan.reset = lambda task: None  # type: ignore[method-assign]
    episodes = from_hard_resets(Acting(PointScene(), Scripted(), plan), episodes=1, max_steps=30, seed=0)
    assert all(e.succeeded and len(e) > 3 and np.all(e.detected == 0.75) for e in episodes)
    with pytest.raises(EnvError, match="need one"):
        Acting(PointScene(), Scripted(), by_detector=True)
