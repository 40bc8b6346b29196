"""From an image as Pillow opens it to 8-bit greyscale or RGB: what every kind of file means."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from boss_core.errors import InputError

_WHITE = 255
# By EXIF's Orientation, of the tags in TIFF 6.0: how to turn what is stored.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


@dataclass(frozen=True)
class Header:
    """What is known before decoding. size: width and height as the image is to be seen. grey:
    whether it holds shades of grey alone."""

    size: tuple[int, int]
    grey: bool


def read_header(image: Image.Image) -> Header:
    """The header of an image that was opened; decodes nothing.

    Raises InputError for what is no picture of 8 or 16 bits a channel: floating-point or 32-bit
    numbers, whose white nobody knows, and animations or pages, of which one would have to be
    chosen.
    """
    # A JPEG with previews or other views behind it (MPO) is the first of them.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InputError("several frames or pages; an image with one needed")
    if image.mode == "F":
        raise InputError("floating-point pixels; 8 or 16 bits a channel needed")
    if _sixteen_bits(image):
        if image.format not in ("PNG", "TIFF", "PPM"):
            raise InputError(
                f"16 bits a pixel in {image.format}; PNG, TIFF or PGM, or 8 bits, needed"
            )
    elif image.mode == "I":
        raise InputError("32-bit or signed pixels; 8 or 16 bits a channel needed")
    width, height = image.size
    if _orientation(image, header=True) >= 5:
        width, height = height, width
    return Header((width, height), _is_grey(image))


def read_pixels(image: Image.Image, *, grey: bool) -> Image.Image:
    """An image that `read_header` takes as Pillow's ``L`` or ``RGB``, 8 bits a channel.

    16 bits are scaled so that white stays white (65535 to 255, 257 to 1), where they are grey
    rounded to the nearest. What is transparent shows white, as on a page. The EXIF orientation is
    applied.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    found = _eight_bits(image) if _sixteen_bits(image) else _opaque(image)
    found = found.convert("L" if grey else "RGB")
    return found if turn is None else found.transpose(turn)


def _sixteen_bits(image: Image.Image) -> bool:
    """Whether this is greyscale of 16 bits; colour of 16 bits comes from Pillow as 8."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits, or as many as a TIFF has, as one of 8."""
    tags = getattr(image, "tag_v2", {})
    top = 2 ** tags.get(_BITS, (16,))[0] - 1
    values: NDArray[np.uint32] = np.asarray(image).astype(np.uint32)
    scaled = ((values * 255 + top // 2) // top).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        scaled = 255 - scaled
    if "transparency" in image.info:  # of one value, in a PNG
        scaled[values == image.info["transparency"]] = _WHITE
    return Image.fromarray(scaled)


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    if image.mode == "RGBA" and image.format == "PNG":  # Pillow has no mode for grey with alpha
        return any(str(tile.args).startswith("LA;16") for tile in getattr(image, "tile", ()))
    return image.mode in ("1", "L", "LA", "La") or _sixteen_bits(image)


def _orientation(image: Image.Image, *, header: bool = False) -> int:
    """EXIF's Orientation, 1 (as stored) to 8. header: as far as it comes before the pixels, which
    Pillow would decode to look for more."""
    if image.format == "TIFF":  # which Pillow turns by itself
        return 1
    if header and image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, OSError, struct.error):  # no picture is bad for its EXIF
        return 1
    return found if found in _TURNS else 1
