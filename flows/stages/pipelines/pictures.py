"""What a pipeline returns, as the images that a judge compares and a grid shows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.errors import InputError

SHOWN = 40  # of a grid: as many as it has places
FRAMES = 8  # of a film in a grid, at most: a row for each film
THUMBNAIL = 192  # pixels, of the longer side in a grid of larger images


def pictures(output: Any) -> NDArray[np.uint8]:
    """uint8 (B, 3, H, W): the images of a pipeline's output, or the middle frame of each film.
    InputError for another kind of output, as sound."""
    films = _films(output)
    return np.stack([_pixels(film[len(film) // 2]) for film in films])


def frames(output: Any) -> NDArray[np.uint8]:
    """uint8 (B, F, 3, H, W): of each film up to `FRAMES`, from its first to its last; of an image
    the one that it is."""
    films = _films(output)
    numbers = np.unique(np.linspace(0, len(films[0]) - 1, FRAMES).round().astype(int))
    return np.stack([[_pixels(film[k]) for k in numbers] for film in films])


def length(output: Any) -> int:
    """Frames of each film; 1 of an image."""
    return len(_films(output)[0])


def _films(output: Any) -> list[Any]:
    """The frames of each sample, of an image the one that it is."""
    found = getattr(output, "images", None)
    if found is not None:
        return [[image] for image in found]
    films = getattr(output, "frames", None)
    if films is None:
        raise InputError(
            f"params.yaml: teacher.path: its pipeline returns {type(output).__name__}, in which"
            " there are no images to compare; images or films needed"
        )
    return list(films)


def _pixels(one: Any) -> NDArray[np.uint8]:
    """(3, H, W) of a PIL image, or of numbers in [0, 1], (H, W, 3)."""
    if isinstance(one, Image.Image):
        array = np.asarray(one.convert("RGB"))
    else:
        array = np.round(255 * np.clip(np.asarray(one, np.float32), 0.0, 1.0)).astype(np.uint8)
    return array.transpose(2, 0, 1)


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first images, large ones made smaller, for a grid."""
    shown = np.asarray(images[:SHOWN])
    height, width = shown.shape[2:]
    scale = THUMBNAIL / max(height, width)
    if scale >= 1.0:
        return shown
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = [Image.fromarray(each.transpose(1, 2, 0)).resize(size) for each in shown]
    return np.stack([np.asarray(each).transpose(2, 0, 1) for each in small])
