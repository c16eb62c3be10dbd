"""Environments and their experts by name."""

from typing import Literal

from rollouts.envs.api import EnvError, SceneEnv

SIMULATOR_SECONDS = 0.0125
"""Of a simulator step of Meta-World's: five of MuJoCo's."""


def decision_rate(name: str, repeat: int = 3) -> float | None:
    """Decisions a second in the environment called ``name``; None for one that has no time, or does not tell."""
    return 1 / (repeat * SIMULATOR_SECONDS) if name.startswith("metaworld:") else None


def make_env(
    name: str,
    *,
    image: bool = False,
    image_size: int = 84,
    repeat: int = 3,
    camera: str = "front",
    success: Literal["info", "termination", "never"] = "info",
    instruction: str | None = None,
) -> SceneEnv:
    """The environment called ``name``: "metaworld:window" (or another pair), "point", or "gym:" and a Gymnasium id.

    ``image`` adds pictures of ``image_size`` squared to the observations; ``repeat`` and ``camera`` are Meta-World's,
    ``success`` and ``instruction`` Gymnasium's (see the classes). Raises :class:`rollouts.envs.api.EnvError`, one line,
    for a name or a setting that does not exist, and for a missing package.
    """
    family, _, rest = name.partition(":")
    try:
        match family:
            case "point" if not rest:
                from rollouts.envs.point import PointScene

                return PointScene(image, image_size)
            case "metaworld":
                from rollouts.envs.metaworld import MetaWorldScene

                return MetaWorldScene(rest, image=image, image_size=image_size, repeat=repeat, camera=camera)
            case "gym" if rest:
                from rollouts.envs.gym_env import GymScene

                if image:
                    raise EnvError(f"{name} has no pictures here; take metaworld:… or point, or leave image out")
                return GymScene(rest, success, instruction)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"{name} needs the package {error.name}: pip install 'polestar-align[robot]' installs it"
        ) from error
    except ImportError as error:
        raise EnvError(
            f"{name} cannot draw here ({error}): install libegl1, or set MUJOCO_GL to osmesa, or to disabled if no "
            "pictures are needed"
        ) from error
    raise EnvError(f"unknown environment {name!r}; there are metaworld:<pair>, point and gym:<id>")
