"""Frames into an MP4 file and back, through the ffmpeg that the package imageio-ffmpeg brings."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollouts.episodes.files import EpisodeError

CODEC, PIXELS = "h264", "yuv420p"
GROUP, QUALITY = 2, 18
"""Every second frame stands alone, so that any frame is quick to reach; a constant rate factor (lower is better)."""


class VideoWriter:
    """Writes frames, uint8 [H, W, 3], to an MP4 file at a constant rate; a context manager.

    H.264 with 4:2:0 colours: every device plays it, and it loses detail. Raises :class:`EpisodeError` for sides that
    are odd, which those colours cannot have, and where ffmpeg fails.
    """

    def __init__(self, path: Path, height: int, width: int, fps: int) -> None:
        if height % 2 or width % 2:
            raise EpisodeError(f"frames of {height}x{width} cannot become a video: both sides must be even; keep them "
                               "as pictures")  # fmt: skip
        self._path = path
        # No B-frames: a frame's time is then its number divided by the rate, in the file as in the tables beside it.
        options = ["-g", str(GROUP), "-crf", str(QUALITY), "-bf", "0", "-threads", "1"]
        self._stream = _ffmpeg().write_frames(
            str(path), (width, height), fps=fps, codec="libx264", pix_fmt_out=PIXELS, quality=None, macro_block_size=1,
            ffmpeg_log_level="error", output_params=options,
        )  # fmt: skip

    def __enter__(self) -> "VideoWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream.send(None)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> None:
        try:
            for frame in frames:
                self._stream.send(np.ascontiguousarray(frame))
        except OSError as error:
            reason = " ".join(str(error).split())
            raise EpisodeError(f"{self._path}: ffmpeg failed: {reason:.200}") from error


class VideoReader:
    """Reads stretches of frames from an MP4 file; quick where they are asked for in order."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EpisodeError(f"{path}: missing, and the dataset counts on it; put it back")
        self._path = path
        self._frames: Iterator[NDArray[np.uint8]] | None = None
        self._next = 0

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """Frames ``start`` to ``start + count - 1``, [count, H, W, 3]. Raises :class:`EpisodeError` for too few."""
        if self._frames is None or start < self._next:
            self._frames, self._next = _decoded(self._path), 0
        frames = []
        for frame in self._frames:
            self._next += 1
            if self._next > start:
                frames.append(frame)
            if len(frames) == count:
                return np.stack(frames)
        raise EpisodeError(f"{self._path}: ends before frame {start + count - 1}; the file is not whole")


def _decoded(path: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        # Passthrough: each frame once, even where its time says otherwise.
        stream = _ffmpeg().read_frames(str(path), output_params=["-fps_mode", "passthrough"])
        width, height = next(stream)["size"]
        for frame in stream:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError, KeyError) as error:
        raise EpisodeError(f"{path}: not a video that ffmpeg can read; it is damaged") from error


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise EpisodeError("videos need the package imageio-ffmpeg; run 'pip install imageio[ffmpeg]'") from error
    return imageio_ffmpeg
