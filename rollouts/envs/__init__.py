"""Environments that a robot learns in, and what it brings back from them."""

import os
import platform

# MuJoCo chooses its way to draw when it is imported, and everything that imports it lives in this package: machines
# without a screen get EGL, unless the user has chosen.
if platform.system() == "Linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
