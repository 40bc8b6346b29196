"""Pixels as floats and back."""

import pytest
import torch

from boss_core.io.pixels import from_uint8, to_uint8


def test_every_pixel_comes_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = from_uint8(pixels)
    assert (float(floats[0]), float(floats[255])) == (-1.0, 1.0)
    assert torch.equal(to_uint8(floats), pixels)


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-7.0, 0), (7.0, 255), (-0.9962, 0), (-0.9960, 1), (0.9960, 254), (0.9962, 255)],
)
def test_the_nearest_pixel_within_the_range(value: float, pixel: int) -> None:
    """Half a pixel is 1 / 255 = 0.00392 in floats."""
    assert int(to_uint8(torch.tensor(value))) == pixel
