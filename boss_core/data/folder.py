"""A folder of image files, classes by sub-folder."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from boss_core.data.files import visible_files
from boss_core.data.images import ImageSource, StoredImage
from boss_core.errors import InputError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".gif", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Images too, which Pillow does not open or not with certainty: data that would be missing.
_OTHER_IMAGES = (
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".xcf", ".exr", ".hdr",
    ".tga", ".dds", ".dcm", ".ico", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".raf", ".apng",
)  # fmt: skip
_NAMED = 3  # of the files that are no images, by their names


def folder(path: Path) -> ImageSource:
    """The image files in a folder and its sub-folders, in sorted order; hidden ones are left out,
    symbolic links followed.

    They have labels when every one lies in a sub-folder of ``path``: the sorted names of these
    are the classes. Raises InputError when there is no such folder, no image in it, an image of a
    kind that is not read, or a class without any.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a folder of images needed")
    files: list[Path] = []
    others: list[Path] = []
    for file in sorted(visible_files(path)):
        suffix = file.suffix.lower()
        if suffix in _OTHER_IMAGES:
            raise InputError(
                f"{file}: images ending in {suffix} are not read; {', '.join(SUFFIXES)}, or none"
                " of these in the folder, needed"
            )
        (files if suffix in SUFFIXES else others).append(file)
    if not files:
        raise InputError(f"{path}: no images in it; files ending in {', '.join(SUFFIXES)} needed")
    labels = None
    if all(file.parent != path for file in files):
        names = [file.relative_to(path).parts[0] for file in files]
        _check_classes(path, set(names))
        labels = np.unique(names, return_inverse=True)[1].astype(np.int64)

    def images() -> Iterator[StoredImage]:
        for file in files:
            yield StoredImage(str(file), partial(Image.open, file))

    remarks = (*_left_out(path, others), *_beside(path, files), *_links(path, files))
    return ImageSource(len(files), labels, images, remarks=remarks)


def _check_classes(path: Path, names: set[str]) -> None:
    """A folder without images would be no class, and the labels of those after it others than
    the sorted folders say."""
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.name not in names:
            raise InputError(
                f"{child}: no images in it, and every folder beside it is a class; add images, or"
                " remove it"
            )


def _left_out(path: Path, others: list[Path]) -> list[str]:
    if not others:
        return []
    names = ", ".join(str(file.relative_to(path)) for file in others[:_NAMED])
    more = ", ..." if len(others) > _NAMED else ""
    what = "1 file" if len(others) == 1 else f"{len(others)} files"
    return [f"{path}: {what} left out, no images by their names: {names}{more}"]


def _beside(path: Path, files: list[Path]) -> list[str]:
    """Why images in folders have no labels: some lie in none."""
    beside = [file for file in files if file.parent == path]
    if not beside or len(beside) == len(files):
        return []
    images = "1 image" if len(beside) == 1 else f"{len(beside)} images"
    return [f"{path}: no labels: {images} beside the class folders, as {beside[0].name}"]


def _links(path: Path, files: list[Path]) -> list[str]:
    folders = {parent for file in files for parent in file.relative_to(path).parents}
    links = sorted(str(folder) for folder in folders if (path / folder).is_symlink())
    links = [link for link in links if link != "."]
    if not links:
        return []
    return [
        f"{path}: {links[0]}{' and others are links' if links[1:] else ' is a link'}; DVC does not"
        " see when images behind it change: `dvc repro --force prepare` then"
    ]
