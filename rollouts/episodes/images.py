"""Pictures as bytes: PNG, which keeps every bit, or JPEG."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rollouts.episodes.files import EpisodeError

ImageFormat = Literal["png", "jpeg"]
JPEG_QUALITY = 95


def is_image(shape: Sequence[int], dtype: Any) -> bool:
    """Whether one step of an observation, of ``shape`` and ``dtype``, is a picture: uint8 [H, W, 3]."""
    return np.dtype(dtype) == np.uint8 and len(shape) == 3 and shape[2] == 3 and min(shape) > 0


def encode_image(pixels: NDArray[np.uint8], format: ImageFormat) -> bytes:
    """[H, W, 3] as a file. JPEG loses detail, of colours above all; PNG nothing."""
    from PIL import Image

    file = io.BytesIO()
    # PNG level 1: a tenth larger than the default for pictures of a simulator, and several times as fast.
    settings: dict[str, Any] = {"compress_level": 1} if format == "png" else {"quality": JPEG_QUALITY}
    Image.fromarray(pixels).save(file, format, **settings)
    return file.getvalue()


def decode_image(content: bytes, shape: Sequence[int], where: str) -> NDArray[np.uint8]:
    """The pixels of a file; ``shape`` [H, W, 3] is what is expected. Raises :class:`EpisodeError` naming ``where``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise EpisodeError(f"{where}: a picture is damaged; write the episodes anew") from error
    if pixels.shape != tuple(shape):
        raise EpisodeError(f"{where}: a picture has shape {pixels.shape}, expected {tuple(shape)}")
    return pixels
