"""The environment of a robot's recipe."""

from typing import TYPE_CHECKING

from align.recipe.robot import Environment

if TYPE_CHECKING:
    from rollouts.envs.api import SceneEnv


def scene_name(environment: Environment) -> str:
    """The name that :func:`rollouts.envs.make.make_env` knows it by."""
    match environment.type:
        case "metaworld":
            return f"metaworld:{environment.pair}"
        case "gym":
            return f"gym:{environment.id}"
        case "point":
            return "point"


def open_scene(environment: Environment, *, image: bool) -> "SceneEnv":
    """The recipe's environment, with pictures where they are needed."""
    from rollouts.envs.make import make_env

    repeat = environment.action_repeat if environment.type == "metaworld" else 1
    return make_env(scene_name(environment), image=image, image_size=environment.image_size, repeat=repeat)
