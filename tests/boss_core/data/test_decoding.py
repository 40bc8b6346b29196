"""Kinds of image files: depth, grey, transparency, orientation; pixels worked out by hand."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from boss_core.data.folder import folder
from boss_core.data.images import ImageSource, StoredImage, image_shape, read_images
from boss_core.data.parquet import parquet
from boss_core.errors import InputError

# 257 v for every v of 8 bits, and values that round down and up: 128 / 257 is just below a half.
DEEP = np.array([[0, 128, 129, 257], [300, 32768, 65407, 65535]], np.uint16)
SHALLOW = [[0, 0, 1, 1], [1, 128, 255, 255]]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(depth: int, colour: int, rows: NDArray, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of rows of bytes, with other chunks before and after its pixels: what Pillow does not
    write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    size = struct.pack(">II", rows.shape[1] * 8 // (depth * channels), len(rows))
    parts = [
        chunk(b"IHDR", size + bytes([depth, colour, 0, 0, 0])),
        chunk(before[:4], before[4:]) if before else b"",
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(after[:4], after[4:]) if after else b"",
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def big_endian(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return values.astype(">u2").view(np.uint8).reshape(len(values), -1)


def source_of(*files: bytes) -> ImageSource:
    def stored() -> Iterator[StoredImage]:
        for index, content in enumerate(files):
            yield StoredImage(f"file {index}", lambda content=content: Image.open(BytesIO(content)))

    return ImageSource(len(files), None, stored)


def read(content: bytes) -> NDArray[np.uint8]:
    """The pixels of one file, (C, H, W)."""
    source = source_of(content)
    (found,) = read_images(source, image_shape(source))
    return found


def tiff(values: NDArray, **tags: int) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        directory[int(number[1:])] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=directory)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(DEEP), "PNG"),
        encoded(Image.fromarray(DEEP), "PPM"),
        tiff(DEEP),
        encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        png(16, 0, big_endian(DEEP)),
    ],
    ids=["png", "pgm", "tiff", "tiff big-endian", "png by hand"],
)
def test_white_of_16_bits_is_white_of_8(content: bytes) -> None:
    assert read(content).tolist() == [SHALLOW]


def test_16_bits_are_right_in_every_source(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from boss_core.data.torchvision import torchvision

    content = encoded(Image.fromarray(DEEP), "PNG")
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.PNG").write_bytes(content)
    pq.write_table(pa.table({"image": [content] * 2}), tmp_path / "a.parquet")
    for source in (
        folder(tmp_path / "classes"),
        torchvision("ImageFolder", tmp_path / "classes"),
        parquet(tmp_path / "a.parquet", "image", None),
    ):
        shape = image_shape(source)
        assert shape == (1, 2, 4)
        assert [image.tolist() for image in read_images(source, shape)] == [[SHALLOW]] * 2


def test_fewer_bits_and_inverted_ones_of_a_tiff() -> None:
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    samples = bytes.fromhex("000fff800010")  # 0, 4095, 2048, 16 of 12 bits each
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, of, 0) for tag, of in tags.items())
    start = 8 + len(samples)
    content = b"II\x2a\0" + struct.pack("<I", start) + samples
    content += struct.pack("<H", len(tags)) + directory + bytes(4)
    assert read(content).tolist() == [[[0, 255, 128, 1]]]
    assert read(tiff(65535 - DEEP, _262=0)).tolist() == [SHALLOW]  # 0 is white


def test_colour_of_16_bits_keeps_its_range() -> None:
    values = np.array([[[0, 65535, 256], [65535, 0, 32896]]], np.uint16)
    found = read(png(16, 2, big_endian(values.reshape(1, -1))))
    assert found.transpose(1, 2, 0).tolist() == [[[0, 255, 1], [255, 0, 128]]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_shallow_greys_span_the_range(bits: int) -> None:
    row = (2**bits - 1) << (8 - 2 * bits)  # black, then white
    found = read(png(bits, 0, np.full((2, 1), row, np.uint8)))
    assert found.shape == (1, 2, 8 // bits)
    assert found[0, :, :2].tolist() == [[0, 255]] * 2


def test_grey_is_grey_however_it_is_stored() -> None:
    ramp = np.arange(0, 256, 5, np.uint8).reshape(4, 13)
    grey = Image.fromarray(ramp)
    palette = grey.convert("P")
    assert palette.mode == "P"
    opaque = grey.convert("LA")
    for image, kind in (
        (grey, "PNG"), (grey, "GIF"), (grey, "TIFF"), (grey, "BMP"), (palette, "PNG"),
        (palette, "GIF"), (opaque, "PNG"), (opaque, "TIFF"),
    ):  # fmt: skip
        assert read(encoded(image, kind)).tolist() == [ramp.tolist()], (image.mode, kind)
    two = Image.fromarray(ramp > 99)
    assert two.mode == "1"
    for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM"):
        assert read(encoded(two, kind)).tolist() == [(255 * (ramp > 99)).tolist()]
    deep = np.stack([DEEP, np.full_like(DEEP, 65535)], axis=-1).reshape(2, -1)
    assert read(png(16, 4, big_endian(deep))).tolist() == [[[0, 0, 0, 1], [1, 128, 255, 255]]]


def test_a_palette_of_colours_is_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 0), 1)
    assert read(encoded(image, "PNG")).transpose(1, 2, 0).tolist() == [[[9, 9, 9], [200, 0, 0]]]


def test_what_is_transparent_is_white() -> None:
    # Black at alpha 0, half and 1: 255 (1 - a).
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, :, 3] = 0, 128, 255
    colour = Image.fromarray(values)
    assert read(encoded(colour, "PNG")).tolist() == [[[255, 127, 0]]] * 3
    assert read(encoded(colour, "WEBP", lossless=True)).tolist() == [[[255, 127, 0]]] * 3
    assert read(encoded(colour.convert("LA"), "PNG")).tolist() == [[[255, 127, 0]]]
    keyed = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert read(encoded(keyed, "PNG", transparency=7)).tolist() == [[[255, 8]]]
    key = b"tRNS" + struct.pack(">H", 257)
    assert read(png(16, 0, big_endian(DEEP), before=key)).tolist() == [
        [[0, 0, 1, 255], [1, 128, 255, 255]]
    ]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 50, 50, 50])
    palette.putpixel((1, 0), 1)
    assert read(encoded(palette, "GIF", transparency=0)).tolist() == [[[255, 50]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    """Orientation of TIFF 6.0: which side of what is seen the stored rows and columns begin at."""
    seen = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.T,  # row 0 is the left side, from top to bottom
        6: np.rot90(seen, 1),  # row 0 is the right side, from top to bottom
        7: seen.T[::-1, ::-1],
        8: np.rot90(seen, -1),
    }
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    for kind, options in (
        ("PNG", {"exif": exif}),
        ("WEBP", {"exif": exif, "lossless": True}),
        ("TIFF", {"exif": exif}),
        ("JPEG", {"exif": exif, "quality": 100}),
    ):
        found = read(encoded(image, kind, **options))
        assert found.shape[1:] == (2, 3), kind
        assert np.abs(found[0].astype(int) - seen).max() <= (3 if kind == "JPEG" else 0), kind
    deep = Image.fromarray(np.ascontiguousarray(stored[orientation]).astype(np.uint16) * 257)
    assert read(encoded(deep, "PNG", exif=exif)).tolist() == [seen.tolist()]


def test_an_orientation_behind_the_pixels() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)

    def late(value: int) -> bytes:
        entry = struct.pack(">HHIHH", 274, 3, 1, value, 0)
        return b"eXIf" + b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", 1) + entry + bytes(4)

    assert read(png(8, 0, rows, after=late(3))).tolist() == [[[6, 5, 4], [3, 2, 1]]]
    with pytest.raises(InputError, match="file 0: 2x3 pixels as its EXIF orientation, which comes"):
        read(png(8, 0, rows, after=late(6)))
    source = source_of(png(8, 0, rows, after=late(6)))
    assert image_shape(source, 2) == (1, 2, 2)
    (found,) = read_images(source, (1, 2, 2))
    assert found.shape == (1, 2, 2)


def test_cmyk_is_colour() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    found = read(encoded(image, "TIFF"))
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    red = read(encoded(image, "JPEG", quality=100))[:, 0, 0].astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(DEEP.astype(np.float32)), "floating-point pixels; 8 or 16 bits a channel needed"),
        (tiff(DEEP.astype(np.int32)), "32-bit or signed pixels; 8 or 16 bits a channel needed"),
        (
            encoded(Image.fromarray(DEEP), "JPEG2000"),
            "16 bits a pixel in JPEG2000; PNG, TIFF or PGM, or 8 bits, needed",
        ),
        *(
            (
                encoded(
                    Image.new("L", (2, 2), 0),
                    kind,
                    save_all=True,
                    append_images=[Image.new("L", (2, 2), 255)],
                ),
                "several frames or pages; an image with one needed",
            )
            for kind in ("GIF", "PNG", "WEBP", "TIFF")
        ),
    ],
)
def test_what_is_no_picture_of_8_or_16_bits(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=f"file 0: {says}"):
        image_shape(source_of(content))


def test_a_photograph_with_a_preview_behind_it_is_read() -> None:
    views = [Image.new("RGB", (4, 4), value) for value in ((200, 0, 0), (0, 200, 0))]
    content = encoded(views[0], "MPO", save_all=True, append_images=views[1:])
    assert read(content)[0].min() > 190
