"""Random images, as arrays and as encoded files."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(count: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Images of independent random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encode(image: NDArray[np.uint8], kind: str) -> bytes:
    """An image (H, W) or (H, W, 3) as the bytes of a file."""
    file = BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()
