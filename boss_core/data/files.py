"""The files below a folder, as a user sees them."""

import os
from collections.abc import Iterator
from pathlib import Path

from boss_core.errors import InputError


def visible_files(folder: Path) -> Iterator[Path]:
    """Every file in a folder and its sub-folders, in no certain order, but for hidden ones and
    those in hidden folders, whose names begin with a dot: what other programs left there.

    Symbolic links are followed. Raises InputError for one that leads to nothing or to a folder
    that it lies in, which would have no end.
    """
    yield from _below(folder, {_identity(folder)})


def _below(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not path.exists():
                raise InputError(
                    f"{path}: a symbolic link that leads nowhere; one to a file or a folder, or"
                    " none, needed"
                )
            if entry.is_dir():
                here = _identity(path)
                if here in above:
                    raise InputError(
                        f"{path}: a symbolic link to a folder that it lies in; one to another"
                        " folder, or none, needed"
                    )
                yield from _below(path, above | {here})
            elif entry.is_file():
                yield path


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
