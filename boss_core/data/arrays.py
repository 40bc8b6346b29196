"""NumPy's .npy and .npz files, read from front to back and never whole."""

import math
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from boss_core.data.images import ImageSource, StoredImage, check_labels, to_pillow
from boss_core.errors import InputError
from boss_core.io.files import ALTERED, is_of_the_disk

_NEEDED = "uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, needed"


def npy(folder: Path) -> ImageSource:
    """The images of ``images.npy`` in a folder, with the labels of ``labels.npy`` if it is there.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3; channels come last where
    the last axis has 1 or 3 entries. Labels are integers (N,). Raises InputError for anything
    else, and for a truncated file.
    """
    path = folder / "images.npy"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; a folder with images.npy and, for labels, labels.npy needed"
        )
    source = _source(str(path), partial(_open, path), path.stat().st_size)
    labels = folder / "labels.npy"
    if not labels.is_file():
        return source
    with labels.open("rb") as stream:
        return _labelled(source, stream, str(labels))


def npz(path: Path) -> ImageSource:
    """The images and labels of an .npz file: its members ``images`` and ``labels`` or, as
    ``np.savez(path, images, labels)`` calls them, ``arr_0`` and ``arr_1``.

    The members are as in `npy`; that of the labels may be missing. A compressed member is
    decompressed on the way, so both kinds stream.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; an .npz file needed")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except ALTERED as error:
        raise _altered(str(path), "truncated or not an .npz file", error) from error
    images, labels = "images.npy", "labels.npy"
    if images not in sizes:
        images, labels = "arr_0.npy", "arr_1.npy"
    if images not in sizes:
        members = ", ".join(name.removesuffix(".npy") for name in sizes) or "empty"
        raise InputError(f"{path}: no member images or arr_0; its members: {members}")

    def name(member: str) -> str:
        return f"{path}: {member.removesuffix('.npy')}"

    def open_member(member: str) -> IO[bytes]:
        try:
            # The member keeps the file open for as long as it is open itself.
            with zipfile.ZipFile(path) as archive:
                return archive.open(member)
        except ALTERED as error:
            raise _altered(name(member), "truncated or altered", error) from error

    source = _source(name(images), partial(open_member, images), sizes[images])
    if labels not in sizes:
        return source
    with open_member(labels) as stream:
        return _labelled(source, stream, name(labels))


def _altered(name: str, what: str, error: BaseException) -> BaseException:
    """What to raise for an error of reading: itself where that is the disk's."""
    if is_of_the_disk(error):
        return error
    why = "".join(str(error).splitlines()[:1])  # numpy explains some in paragraphs
    return InputError(f"{name}: {what} ({why})")


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _source(name: str, open_stream: Callable[[], IO[bytes]], length: int) -> ImageSource:
    """Images in one array of ``length`` bytes, header included, that is read from a stream."""
    with open_stream() as stream:
        shape = _image_header(name, stream)
        header = stream.tell()
    one = shape[1:]
    size = math.prod(one)
    if length < header + shape[0] * size:
        raise InputError(
            f"{name}: truncated: {length} bytes; {header + shape[0] * size} needed for {shape}"
        )

    def images() -> Iterator[StoredImage]:
        with open_stream() as stream:
            _image_header(name, stream)
            for index in range(shape[0]):
                try:
                    content = stream.read(size)
                except ALTERED as error:
                    raise _altered(name, "truncated or altered", error) from error
                if len(content) < size:
                    raise InputError(f"{name}: truncated at image {index} of {shape[0]}")
                array = _channels_last(np.frombuffer(content, np.uint8).reshape(one))
                yield StoredImage(f"{name}[{index}]", partial(to_pillow, array))

    height, width, channels = _channels_last(np.empty(one, np.uint8)).shape
    return ImageSource(shape[0], None, images, (channels, height, width))


def _labelled(source: ImageSource, stream: IO[bytes], name: str) -> ImageSource:
    try:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    except (*ALTERED, MemoryError) as error:  # of memory for as many as its header says
        raise _altered(name, "truncated or not an array of numbers", error) from error
    return ImageSource(
        source.count, check_labels(labels, source.count, name), source.images, source.shape
    )


def _image_header(name: str, stream: IO[bytes]) -> tuple[int, ...]:
    """The shape of an array of images; leaves the stream at the first pixel."""
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read(stream)
    except ALTERED as error:
        raise _altered(name, "truncated or not an .npy array", error) from error
    if dtype != np.uint8:
        raise InputError(f"{name}: dtype {dtype}; {_NEEDED}")
    if (
        len(shape) not in (3, 4)
        or min(shape) < 1
        or (len(shape) == 4 and {1, 3}.isdisjoint((shape[1], shape[3])))
    ):
        raise InputError(f"{name}: shape {shape}; {_NEEDED}")
    if fortran_order:
        raise InputError(f"{name}: in Fortran's order; save np.ascontiguousarray(images)")
    return shape


def _channels_last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image as it is stored to (H, W, C)."""
    if image.ndim == 2:
        return image[:, :, None]
    return image if image.shape[2] in (1, 3) else image.transpose(1, 2, 0)
