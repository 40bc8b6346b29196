"""Images of any kind of storage: found first, then decoded in order, a few at a time."""

import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from boss_core.data.decoding import read_header, read_pixels
from boss_core.errors import InputError

Shape = tuple[int, int, int]

_BATCH = 16  # images that a thread decodes at a time
_THREADS = 8  # at most; reading, not decoding, is the limit with more
# How Pillow's formats fail on files that are damaged.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, ArithmeticError,
    TypeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_LABELS = 2**16  # below which a label may be whatever the number of images


@dataclass(frozen=True)
class StoredImage:
    """One image, not decoded yet. name: its file, row or index, for messages."""

    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class ImageSource:
    """Images that were found but not read.

    count: N. labels: (N,), not negative, or None. images: gives all of them in the order of
    storage, as often as it is called. shape: (C, H, W) where the storage has one for all of
    them; None where every image has its own. remarks: lines for the user to see, on what was left
    out or cannot be watched.
    """

    count: int
    labels: NDArray[np.int64] | None
    images: Callable[[], Iterator[StoredImage]]
    shape: Shape | None = None
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count


def image_shape(
    source: ImageSource,
    image_size: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Shape:
    """The (C, H, W) of all images of a source; it opens each but decodes none.

    C is 1 when all are greyscale, else 3. H and W are ``image_size`` where that is given, else
    those of the images as their EXIF orientation turns them. Calls ``advance`` with the number of
    images looked at since. Raises InputError for an image that cannot be opened or is none that
    `boss_core.data.decoding.read_header` takes and, without ``image_size``, for images of mixed
    size.
    """
    if source.shape is not None:
        channels, height, width = source.shape
        return channels, image_size or height, image_size or width
    grey = True
    first: tuple[str, tuple[int, int]] | None = None
    for stored in source.images():
        with _opened(stored) as image:
            header = read_header(image)
        size = header.size
        grey &= header.grey
        first = first or (stored.name, size)
        if image_size is None and size != first[1]:
            raise InputError(
                f"{stored.name}: {size[0]}x{size[1]} pixels, but {first[0]} has"
                f" {first[1][0]}x{first[1][1]}; images of one size, or image_size, needed"
            )
        advance(1)
    if first is None:
        raise InputError("no images; at least one needed")
    width, height = first[1]
    return 1 if grey else 3, image_size or height, image_size or width


def read_images(
    source: ImageSource, shape: Shape, threads: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Every image of a source as (C, H, W), in the order of storage.

    An image is turned as its EXIF orientation says. One of another size is cut to the largest
    centred part of the right proportions, then resized with Pillow's Lanczos filter, which
    averages over all pixels when it shrinks. Holds at most ``16 (threads + 1)`` images;
    ``threads`` (default: one a core, at most 8) decode them. Raises InputError for an image that
    is truncated or no image.
    """
    threads = threads or min(_THREADS, len(os.sched_getaffinity(0)))
    stored = source.images()
    pending: deque[Future[list[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(stored, _BATCH)):
            pending.append(pool.submit(_decode, batch, shape))
            if len(pending) > threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def check_labels(
    labels: ArrayLike, count: int, name: str, *, images: int | None = None
) -> NDArray[np.int64]:
    """Labels as int64; InputError unless they are ``count`` whole numbers, none of them negative,
    and below the number of images or 65,536, as those of classes are and identifiers are not.

    name: where they come from, for the message. images: of the whole data set, where these labels
    are of a part.
    """
    found = np.asarray(labels)
    if found.shape != (count,):
        raise InputError(
            f"{name}: shape {found.shape} for {count} images; one label an image, ({count},),"
            " needed"
        )
    if not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"{name}: dtype {found.dtype}; integer labels needed")
    if count and found.min() < 0:
        raise InputError(f"{name}: label {found.min()} found; labels from 0 needed")
    # A network of the classes has weights for each number below the largest.
    if count and found.max() >= (most := max(images or count, _LABELS)):
        raise InputError(
            f"{name}: label {found.max()} found; classes numbered from 0, below {most}, needed"
        )
    return found.astype(np.int64)


def array_source(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> ImageSource:
    """Images in memory, (N, C, H, W) with C 1 or 3, as a source."""
    channels, height, width = images.shape[1:]

    def stored() -> Iterator[StoredImage]:
        for index, image in enumerate(images):
            yield StoredImage(f"image {index}", partial(to_pillow, image.transpose(1, 2, 0)))

    return ImageSource(len(images), labels, stored, (channels, height, width))


def to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    """An array (H, W, C), C 1 or 3, as Pillow's greyscale or RGB image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 1,797 handwritten digits that come with scikit-learn: images (N, 1, 8, 8), labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, bunch.target.astype(np.int64)


@contextmanager
def _opened(stored: StoredImage) -> Iterator[Image.Image]:
    try:
        with stored.open() as image:
            yield image
    except InputError as error:
        raise InputError(f"{stored.name}: {error}") from error
    except _DAMAGED as error:
        # Of bytes in memory Pillow says where they lie there.
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(f"{stored.name}: truncated or not an image{why}") from error


def _decode(batch: list[StoredImage], shape: Shape) -> list[NDArray[np.uint8]]:
    channels, height, width = shape
    decoded = []
    for stored in batch:
        with _opened(stored) as image:
            expected = read_header(image).size
            found = read_pixels(image, grey=channels == 1)
        if found.size != (width, height):
            if expected == (width, height):
                raise InputError(
                    f"{stored.name}: {found.width}x{found.height} pixels as its EXIF orientation,"
                    f" which comes after the pixels, turns it; {width}x{height}, or image_size,"
                    " needed"
                )
            found = _fit(found, width, height)
        array = np.asarray(found).reshape(height, width, channels)
        decoded.append(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return decoded


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(image.width / width, image.height / height)
    wide, high = round(width * scale), round(height * scale)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    # Cut first: resize's own `box` lets the filter see the pixels around it.
    cut = image.crop((left, top, left + wide, top + high))
    return cut.resize((width, height), Image.Resampling.LANCZOS)
