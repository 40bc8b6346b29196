"""Where images come from: a folder, or scikit-learn's digits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from boss_core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageFolder:
    """Images of one size in a folder, found but not read.

    files: in sorted order. shape: (C, H, W); 1 channel when all are greyscale, else 3.
    labels: (N,) when every image lies in a sub-folder, whose sorted names are the classes.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    labels: NDArray[np.int64] | None

    def read(self, index: int) -> NDArray[np.uint8]:
        """One image, (C, H, W); InputError when it is truncated or not an image."""
        path = self.files[index]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if self.shape[0] == 1 else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path}: truncated or not an image ({error})") from error
        return np.ascontiguousarray(pixels.reshape(*self.shape[1:], -1).transpose(2, 0, 1))


def list_images(folder: Path) -> tuple[Path, ...]:
    """The image files in a folder and its sub-folders, sorted; InputError when there is no such
    folder or no image in it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a folder of images needed")
    files = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES))
    if not files:
        raise InputError(f"{folder}: no images in it; files ending in {', '.join(SUFFIXES)} needed")
    return files


def find_images(folder: Path) -> ImageFolder:
    """Look through a folder and its sub-folders, reading only the header of each image.

    Raises InputError when there is no such folder, no image in it, or images of mixed size.
    """
    files = list_images(folder)
    sizes, modes = [], set()
    for path in files:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                modes.add(image.mode)
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path}: truncated or not an image ({error})") from error
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"{path}: {sizes[-1][0]}x{sizes[-1][1]} pixels, but {files[0]} has"
                f" {sizes[0][0]}x{sizes[0][1]}; images of one size needed"
            )
    width, height = sizes[0]
    labels = None
    if all(path.parent != folder for path in files):
        classes = sorted({path.relative_to(folder).parts[0] for path in files})
        labels = np.array([classes.index(p.relative_to(folder).parts[0]) for p in files])
    return ImageFolder(files, (1 if modes == {"L"} else 3, height, width), labels)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 1,797 handwritten digits that come with scikit-learn: images (N, 1, 8, 8), labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, bunch.target.astype(np.int64)
