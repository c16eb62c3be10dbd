"""Pictures of a MuJoCo scene without a screen: small and fast for policies, large and fine for people."""

import atexit
import contextlib
import weakref
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

# Mesa's software renderer brings an LLVM along. Triton, which torch and transformers import when they please, has
# another, finds the wrong symbols if it comes second, and takes the process down.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

SHAPES, LOOKS, ARM = 0, 1, 5
"""Groups of geoms: plain shapes that are drawn as they are, meshes, and the robot's arm (see :func:`set_apart`).

Meta-World keeps what collides in group 4, half transparent: it is never drawn here.
"""
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
"""Meta-World's cameras that hang upside down (Farama-Foundation/Metaworld issue 516)."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a free camera looks: a point in the world (metres), how far from it, and the angles (degrees)."""

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


class Camera:
    """Draws a scene, upright, with no site in it: Meta-World marks goals by sites, which would give the answer away.

    ``view`` is a :class:`View` or the name of one of the model's cameras. Without ``fine`` there are no shadows,
    reflections, sky, anti-aliasing or arm: five sixths of the scene's 70,000 faces are the arm's, and a software
    renderer spends its time on those and on the shadow map of 4096 squared, not on pixels.
    """

    def __init__(self, model: Any, data: Any, size: int, view: View | str, *, fine: bool) -> None:
        self._model, self._data, self._fine = model, data, fine
        self._upside_down = view in UPSIDE_DOWN
        self._view = _free_camera(view) if isinstance(view, View) else view
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._option.geomgroup[:] = 0
        self._option.geomgroup[[SHAPES, LOOKS, ARM] if fine else [SHAPES, LOOKS]] = 1
        # A renderer reads these from the model when it is made, and never again.
        model.vis.quality.offsamples = 4 if fine else 0
        model.vis.quality.shadowsize = 4096 if fine else 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._renderer = mujoco.Renderer(model, size, size)
        self.close = weakref.finalize(self, self._renderer.close)
        # MuJoCo ends EGL at exit, and a renderer that is closed after that prints a traceback. What was registered last
        # runs first; a finalizer's own turn was registered by whoever in the process made the first one.
        self.close.atexit = False
        atexit.register(self.close)

    def frame(self) -> NDArray[np.uint8]:
        """[size, size, 3]; a new array each time."""
        self._renderer.update_scene(self._data, camera=self._view, scene_option=self._option)
        if not self._fine:
            flags = self._renderer.scene.flags
            for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX"):
                flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        picture: NDArray[np.uint8] = self._renderer.render()
        return np.ascontiguousarray(picture[::-1, ::-1]) if self._upside_down else picture


def set_apart(model: Any, prefixes: tuple[str, ...]) -> None:
    """Puts the geoms of the bodies whose names begin with one of ``prefixes`` into the group ``ARM``."""
    for geom, body in enumerate(model.geom_bodyid):
        if model.body(body).name.startswith(prefixes):
            model.geom_group[geom] = ARM


def _free_camera(view: View) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = view.lookat
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    return camera
