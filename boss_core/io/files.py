"""Files that are written whole or not at all, and their hashes."""

import errno
import hashlib
import lzma
import os
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

# What zipfile and numpy raise where a bit of an archive or of an array is another than it was: by
# names, lengths, places and methods, and by the array's header, which is Python.
ALTERED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
    ValueError, OverflowError, OSError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well and is
    removed when it does not, so that what was there before stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a failed write does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: an empty one to fill, which takes the place of ``path``."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of these names into a folder, new or not. A failed write leaves all as they
    were: only once the last is written they take their places, one after the other. A folder made
    for them goes when they fail."""
    new = not folder.exists()
    try:
        with ExitStack() as renamed:
            for name, content in contents.items():
                renamed.enter_context(replacing(folder / name)).write_bytes(content)
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[NDArray]:
    """A memory-mapped ``.npy`` file to fill; it appears at ``path`` when the block ends well.

    The whole file is allocated at once: writing to a mapped file on a full disk would kill the
    process with SIGBUS instead of raising OSError here.
    """
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        yield array
        array.flush()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be read, rather than not be what it should: a place that a wrong
    length in a file leads to is an OSError, too."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
