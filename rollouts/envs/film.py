"""Episodes to look at: films, and strips of their pictures."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollouts.envs.api import EnvError
from rollouts.envs.types import IMAGE, Episode

FILM_WIDTH, STRIP_WIDTH = 336, 168
GREEN, RED, WHITE, BLACK = (60, 160, 75), (200, 60, 50), (255, 255, 255), (25, 25, 25)
Frames = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]


def write_film(episode: Episode, path: Path, frames: Frames | None = None, fps: int = 12) -> None:
    """Writes ``episode`` to ``path``, a ``.mp4`` or a ``.gif``; under each frame task, step, result and probability.

    ``frames`` are T+1 pictures [H, W, 3] (rendered during the attempt); by default what the policy saw. The last frame
    stands still for a second. Raises :class:`rollouts.envs.api.EnvError` when there are no pictures, or not T+1.
    """
    import imageio.v3 as iio

    if path.suffix not in (".mp4", ".gif"):
        raise EnvError(f"a film is a .mp4 or a .gif, not {path.name!r}")
    drawn = [_captioned(f, episode, t, FILM_WIDTH) for t, f in enumerate(_frames(episode, frames))]
    drawn += [drawn[-1]] * fps
    with _whole(path) as half:
        if path.suffix == ".gif":
            iio.imwrite(half, np.stack(drawn), duration=1000 / fps, loop=0)
        else:
            # Widths and heights are even: more than that, H.264 does not ask for.
            iio.imwrite(half, np.stack(drawn), fps=fps, codec="libx264", macro_block_size=2)


def write_filmstrip(episode: Episode, path: Path, frames: Frames | None = None, columns: int = 8) -> None:
    """Writes a PNG of ``columns`` pictures at even distances, the first and the last among them; see
    :func:`write_film`."""
    from PIL import Image

    pictures = _frames(episode, frames)
    shown = np.unique(np.linspace(0, len(pictures) - 1, columns).round().astype(int))
    strip = np.concatenate([_captioned(pictures[t], episode, int(t), STRIP_WIDTH) for t in shown], axis=1)
    with _whole(path) as half:
        Image.fromarray(strip).save(half, format="PNG")


def film_episodes(episodes: Iterable[Episode], folder: Path, fps: int = 12) -> int:
    """A film (.mp4) and a strip (.png) of each episode in ``folder``, which exists; how many episodes there were.

    Files are named by number and id: ``0003-point-failure-0001.mp4``. Raises like :func:`write_film`.
    """
    count = 0
    for count, episode in enumerate(episodes, 1):
        stem = folder / f"{count - 1:04d}-{re.sub('[^A-Za-z0-9_]+', '-', episode.id)[:100]}"
        write_film(episode, stem.with_suffix(".mp4"), fps=fps)
        write_filmstrip(episode, stem.with_suffix(".png"))
    return count


def caption(episode: Episode, t: int) -> tuple[str, str]:
    """Two lines for the picture after ``t`` actions: task, step and, at the end, the result; then the detector."""
    first = f"{episode.task.name} {t}/{len(episode)}"
    if t == len(episode):
        first += " done" if episode.succeeded else " not done"
    probability = float("nan") if t == 0 else float(episode.detected[t - 1])
    truth = "" if t == 0 else f"truth {'yes' if episode.success[t - 1] else 'no'}"
    detector = "" if math.isnan(probability) else f"detector {probability:.2f}"
    return first, ", ".join(part for part in (truth, detector) if part)


def _frames(episode: Episode, frames: Frames | None) -> Frames:
    if frames is None:
        if IMAGE not in episode.observations:
            raise EnvError(f"episode {episode.id} has no pictures: make episodes with image, or give rendered frames")
        frames = episode.observations[IMAGE]
    if len(frames) != len(episode) + 1:
        raise EnvError(f"episode {episode.id} has {len(episode) + 1} observations, and {len(frames)} frames were given")
    return frames


def _captioned(frame: NDArray[np.uint8], episode: Episode, t: int, width: int) -> NDArray[np.uint8]:
    """The frame at ``width`` pixels with two lines under it; a coloured edge on the last one tells the result."""
    from PIL import Image, ImageDraw, ImageFont

    height = 2 * round(frame.shape[0] * width / frame.shape[1] / 2)
    size = max(10, width // 20)
    band = 2 * round(1.6 * size)
    page = Image.new("RGB", (width, height + band), BLACK)
    page.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(page)
    font: Any = ImageFont.load_default(size)
    for line, text in enumerate(caption(episode, t)):
        draw.text((4, height + 1 + line * round(1.4 * size)), text, WHITE, font)
    if t == len(episode):
        draw.rectangle((0, 0, width - 1, height - 1), outline=GREEN if episode.succeeded else RED, width=width // 56)
    return np.asarray(page)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside ``path``, with its suffix, that becomes ``path`` when all is written."""
    half = path.with_name(f".{path.stem}.half{path.suffix}")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
