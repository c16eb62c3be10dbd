"""Success of a robot's policy: counts by hand, the same scenes at every step, a state that survives."""

import numpy as np
import pytest

from align.evaluate_robot import RobotEvaluator
from rewards.intervals import wilson
from rollouts.envs.experts import PointExpert
from rollouts.envs.point import PointScene
from rollouts.envs.reset_free import ResetFreeConfig
from rollouts.envs.rollout import Acting
from rollouts.envs.types import Action, Observation, Task


class OnlyThere:
    """An expert at one of the two tasks that stands still at the other."""

    def __init__(self) -> None:
        self.expert = PointExpert()

    def reset(self, seed: int) -> None:
        pass

    def act(self, observation: Observation, task: Task) -> Action:
        return self.expert.act(observation, task) if task.name == "there" else np.zeros(2, np.float32)


def evaluator(policy: object, **settings: int) -> RobotEvaluator:
    acting = Acting(PointScene(False, 84), policy)  # type: ignore[arg-type]
    sizes = {"episodes": 3, "lives": 2, "episodes_per_life": 4} | settings
    return RobotEvaluator(acting, ResetFreeConfig(max_steps=60, stuck_after=0), **sizes, seed=0)


def test_an_expert_succeeds_always() -> None:
    metrics = evaluator(PointExpert()).evaluate(0)
    assert metrics["eval/success"] == metrics["eval/success.there"] == metrics["eval/success.back"] == 1.0
    assert metrics["eval/chain_success"] == 1.0
    assert (metrics["eval/chain_low"], metrics["eval/chain_high"]) == wilson(8, 8)


def test_who_knows_one_of_two_tasks_is_stuck_in_the_chain() -> None:
    measured = evaluator(OnlyThere())
    metrics = measured.evaluate(3)
    assert measured.results[3]["there"] == (3, 3) and measured.results[3]["back"] == (0, 3)
    assert metrics["eval/success"] == 0.5
    # The first life does `there` once and is then stuck; the second begins with `back` and never gets away.
    assert measured.results[3]["chain"] == (1, 8)


def test_two_evaluations_set_up_the_same_scenes() -> None:
    measured = evaluator(PointExpert())
    assert measured.evaluate(1) == measured.evaluate(2)


def test_the_state_survives() -> None:
    measured, other = evaluator(OnlyThere()), evaluator(OnlyThere())
    measured.evaluate(3)
    other.load_state_dict(measured.state_dict())
    assert other.results == measured.results


@pytest.mark.parametrize("settings", [{"episodes": 0}, {"lives": 0}])
def test_a_part_may_be_left_out(settings: dict[str, int]) -> None:
    metrics = evaluator(PointExpert(), **settings).evaluate(0)
    assert ("eval/success" in metrics) == ("episodes" not in settings)
    assert ("eval/chain_success" in metrics) == ("lives" not in settings)
