"""A folder of image files, classes by sub-folder."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from boss_core.data import ImageSource, StoredImage
from boss_core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def folder(path: Path) -> ImageSource:
    """The image files in a folder and its sub-folders, in sorted order.

    They have labels when every one lies in a sub-folder of ``path``: the sorted names of these
    are the classes. Raises InputError when there is no such folder or no image in it.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a folder of images needed")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path}: no images in it; files ending in {', '.join(SUFFIXES)} needed")
    labels = None
    if all(file.parent != path for file in files):
        names = [file.relative_to(path).parts[0] for file in files]
        labels = np.unique(names, return_inverse=True)[1].astype(np.int64)

    def images() -> Iterator[StoredImage]:
        for file in files:
            yield StoredImage(str(file), partial(Image.open, file))

    return ImageSource(len(files), labels, images)
