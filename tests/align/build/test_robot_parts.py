"""What a policy is given to see, by the recipe's environment section."""

from typing import Any

import pytest

from align.build.robot_parts import keys, look_at, policy_config
from align.errors import UserError
from align.recipe.robot import RobotRecipe
from rollouts.envs.types import IMAGE, STATE


def recipe(environment: dict[str, Any]) -> RobotRecipe:
    return RobotRecipe.model_validate(
        {
            "name": "seeing",
            "kind": "robot",
            "environment": environment,
            "prior": {"path": "episodes"},
            "reward": {"type": "truth"},
            "learner": {"type": "bc"},
            "schedule": {"total_steps": 1},
        }
    )


@pytest.mark.parametrize(
    ("state", "image", "seen", "columns", "numbers"),
    [
        (True, False, (STATE,), None, 8),
        (True, True, (STATE, IMAGE), None, 8),
        (False, True, (IMAGE,), None, 0),
        ("proprio", False, (STATE,), (0, 1), 2),
        ("proprio", True, (STATE, IMAGE), (0, 1), 2),
    ],
)
def test_the_policy_sees_what_the_recipe_gives_it(
    state: Any, image: bool, seen: tuple[str, ...], columns: tuple[int, ...] | None, numbers: int
) -> None:
    one = recipe({"type": "point", "state": state, "image": image, "image_size": 32})
    config = policy_config(one, look_at(one), None)
    assert keys(one) == seen
    assert (config.state_columns, config.seen_size) == (columns, numbers)


def test_an_environment_that_does_not_say_what_a_robot_measures_on_itself_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        look_at(recipe({"type": "gym", "id": "Pendulum-v1", "state": "proprio"}))
    assert str(caught.value) == (
        "environment: gym:Pendulum-v1 does not say what of its state the robot measures on itself: "
        "set state to true or false"
    )
