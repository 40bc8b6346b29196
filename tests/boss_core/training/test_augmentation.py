"""Augmentation of images, cut out by hand."""

import numpy as np
import torch

from boss_core.training.augmentation import SHIFT, augmented
from boss_core.training.randomness import BatchShare, device_generator

CPU = torch.device("cpu")


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=draw)


def test_augmented_images_are_those_cut_out_by_hand() -> None:
    x = images(400, (3, 10, 12))
    found = augmented(x, device_generator(0, 1, CPU))
    assert (found.shape, found.dtype) == (x.shape, torch.uint8)
    draw = device_generator(0, 1, CPU)
    down, right, mirror = (
        torch.randint(below, (400,), generator=draw).numpy()
        for below in (2 * SHIFT + 1, 2 * SHIFT + 1, 2)
    )
    shifts = np.stack([down, right])
    for k, (image, (down, right)) in enumerate(zip(x.numpy(), shifts.T, strict=True)):
        large = np.pad(image, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        cut = large[:, down : down + 10, right : right + 12]
        assert np.array_equal(found[k], cut[:, :, ::-1] if mirror[k] else cut)
    # All of them happen, about as often as each other: 400 draws of 9, and of 2.
    assert all(np.bincount(of_axis, minlength=9).min() > 20 for of_axis in shifts)
    assert np.bincount(mirror).min() > 150


def test_augmentation_depends_on_the_step_alone() -> None:
    x = images(6)
    found = augmented(x, device_generator(3, 7, CPU))
    assert torch.equal(found, augmented(x, device_generator(3, 7, CPU)))
    assert not torch.equal(found, augmented(x, device_generator(3, 8, CPU)))
    for rank in (0, 1):
        share = BatchShare(rank, 2)
        own = augmented(share.take(x), device_generator(3, 7, CPU), share)
        assert torch.equal(own, share.take(found))
