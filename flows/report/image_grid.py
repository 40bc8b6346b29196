"""Many images as one picture."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.io.files import replacing

COLUMNS, ROWS = 10, 4  # of the grids in the report
DARKEST = 64  # a difference that is black


def write_grid(path: Path, images: NDArray[np.uint8], *, columns: int = COLUMNS) -> None:
    """The first images as one PNG, small ones enlarged to be seen."""
    with replacing(path) as temporary:
        image_grid(images[: COLUMNS * ROWS], columns).save(temporary, format="PNG")


def difference(picture: Path, reference: Path) -> tuple[bytes, float] | None:
    """How a picture of images differs from another of as many, pixel by pixel: a PNG that is white
    where they are equal and black from `DARKEST` levels of 256 on, and the mean of all pixels, in
    levels. None where the pictures are not of one size."""
    with Image.open(picture) as one, Image.open(reference) as other:
        if (one.size, one.mode) != (other.size, other.mode):
            return None
        apart = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    shown = 255 - np.minimum(apart * (255 / DARKEST), 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, format="PNG")
    return file.getvalue(), float(apart.mean())


def image_grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """uint8 (N, C, H, W) as rows of a picture, one pixel apart; small images enlarged."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, np.uint8)
    for k in range(count):
        y, x = divmod(k, columns)
        y, x = y * (height + 1), x * (width + 1)
        canvas[y : y + height, x : x + width] = images[k].transpose(1, 2, 0)
    scale = max(1, 32 // width)
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
