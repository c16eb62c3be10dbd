"""Random shifts: each is a crop of the padded image, all offsets occur, the generator decides."""

import torch
from torch.nn.functional import pad as padded

from align.losses.augment import random_shift


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_image_is_a_crop_of_its_padded_self_and_all_crops_occur() -> None:
    images = torch.randint(0, 256, (1, 5, 6, 3), generator=generator(0), dtype=torch.uint8).repeat(200, 1, 1, 1)
    shifted = random_shift(images, 1, generator(1))
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    frame = padded(images[:1].permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1).byte()
    crops = {(y, x): frame[0, y : y + 5, x : x + 6] for y in range(3) for x in range(3)}
    found = set()
    for image in shifted:
        matches = [place for place, crop in crops.items() if torch.equal(image, crop)]
        assert len(matches) == 1
        found.update(matches)
    assert found == set(crops)


def test_the_generator_decides_and_no_padding_draws_nothing() -> None:
    images = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).to(torch.uint8)
    assert torch.equal(random_shift(images, 2, generator(3)), random_shift(images, 2, generator(3)))
    used = generator(3)
    before = used.get_state()
    assert random_shift(images, 0, used) is images
    assert torch.equal(used.get_state(), before)
