"""Image augmentation for learning from pixels."""

import torch
from torch import Generator, Tensor


def random_shift(images: Tensor, pad: int, generator: Generator) -> Tensor:
    """Each image [B, H, W, C] moved by up to ``pad`` pixels each way, its edge repeated into the gap.

    That is: pad by repeating the edge, then crop at a place drawn uniformly for each image. Same type and shape; with
    ``pad`` 0 the images themselves, and nothing is drawn.

    Source: Kostrikov et al., "Image Augmentation Is All You Need" (DrQ), arXiv 2004.13649: ``pad`` 4 for 84 pixels.
    """
    if pad == 0:
        return images
    batch, height, width, _ = images.shape
    shifts = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator) - pad
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
