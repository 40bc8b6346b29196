"""Many images as one picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.io.files import replacing

COLUMNS, ROWS = 10, 4  # of the grids in the report


def write_grid(path: Path, images: NDArray[np.uint8], *, columns: int = COLUMNS) -> None:
    """The first images as one PNG, small ones enlarged to be seen."""
    with replacing(path) as temporary:
        image_grid(images[: COLUMNS * ROWS], columns).save(temporary, format="PNG")


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
