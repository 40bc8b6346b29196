"""Folders of generated images: every pixel as Pillow and arithmetic have it, or one line that
names the file."""

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from boss_core.data.arrays import npy, npz
from boss_core.data.folder import folder as image_folder
from boss_core.data.images import ImageSource, image_shape, read_images
from tests.helpers.cases import cases, damaged, result_or_line

# Modes of Pillow, and what kinds of file keep them without a loss.
KINDS = {
    "1": ("png", "tif", "bmp", "pbm", "gif"),
    "L": ("png", "tif", "bmp", "pgm"),
    "LA": ("png", "tif"),
    "P": ("png", "gif", "bmp", "tif"),
    "RGB": ("png", "tif", "bmp", "ppm"),
    "RGBA": ("png", "tif"),
    "CMYK": ("tif",),
    "I;16": ("png", "tif", "pgm"),
}
CHANNELS = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
NAMES = st.text(
    st.characters(blacklist_characters="/\0.", blacklist_categories=("Cs",)),
    min_size=1,
    max_size=12,
)
Pixels = NDArray[np.uint8]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Image.Image, str]:
    """An image of any mode and size, and a kind of file that keeps it as it is."""
    mode = draw(st.sampled_from(sorted(KINDS)))
    width, height = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 2**16, (height, width), dtype=np.uint16))
    elif mode == "P":
        image = Image.fromarray(random.integers(0, 8, (height, width), dtype=np.uint8), "P")
        grey = draw(st.booleans())
        image.putpalette(
            random.integers(0, 256, (8, 1 if grey else 3)).repeat(3 if grey else 1, 1).tobytes()
        )
    elif mode == "1":
        image = Image.fromarray(
            random.integers(0, 2, (height, width), dtype=np.uint8) * 255
        ).convert("1")
    else:
        shape = (height, width, CHANNELS[mode]) if mode in CHANNELS else (height, width)
        image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode)
    return image, draw(st.sampled_from(KINDS[mode]))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    formats = {"tif": "TIFF", "pbm": "PPM", "pgm": "PPM", "jpg": "JPEG"}
    image.save(file, formats.get(kind, kind.upper()), **options)
    return file.getvalue()


def expected(image: Image.Image) -> NDArray[np.float64]:
    """(H, W, 3) by Pillow's conversion, or by hand where it has none."""
    if image.mode == "I;16":
        grey = np.floor(np.asarray(image).astype(np.float64) * 255 / 65535 + 0.5)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("LA", "RGBA"):
        values = np.asarray(image.convert("RGBA")).astype(np.float64)
        alpha = values[:, :, 3:] / 255
        return values[:, :, :3] * alpha + 255 * (1 - alpha)
    return np.asarray(image.convert("RGB")).astype(np.float64)


def is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "I;16")


def read(source: ImageSource) -> list[Pixels]:
    return list(read_images(source, image_shape(source), threads=1))


def emptied(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


@cases(50)
@given(
    picture=pictures(),
    folders=st.lists(NAMES, max_size=2),
    name=NAMES,
    suffix=st.sampled_from([None, None, "jpg", "PNG", "gif"]),
)
def test_pixels_are_those_of_pillow(
    tmp_path: Path,
    picture: tuple[Image.Image, str],
    folders: list[str],
    name: str,
    suffix: str | None,
) -> None:
    """Whatever the folders, the file and its suffix are called."""
    image, kind = picture
    root = emptied(tmp_path / "images")
    path = root.joinpath(*folders, f"{name}.{suffix or kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, kind))
    source = image_folder(root)
    (found,) = read(source)
    assert source.labels is None if not folders else source.labels.tolist() == [0]
    right = expected(image).transpose(2, 0, 1)
    if len(found) == 1:
        assert (right == right[:1]).all()
    else:
        assert not is_grey(image)
    # Pillow's own blending over white is off by one at most.
    most = 1 if image.mode in ("LA", "RGBA") else 0
    assert np.abs(found - right).max() <= most


LOSSY = ("jpg", "webp", "avif", "png", "tif", "bmp", "gif", "ppm")


def files() -> dict[str, bytes]:
    """One of each kind, with what may lie inside: levels, interlacing, compression."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((24, 20))
    found = {f"plain.{kind}": encoded(smooth, kind) for kind in LOSSY}
    found["progressive.jpg"] = encoded(smooth, "jpg", progressive=True)
    found["lossless.webp"] = encoded(smooth, "webp", lossless=True)
    found["grey.png"] = encoded(smooth.convert("L"), "png")
    found["see-through.png"] = encoded(smooth.convert("P"), "png", transparency=3)
    found["deep.png"] = encoded(
        Image.fromarray(random.integers(0, 2**16, (20, 24), dtype=np.uint16)), "png"
    )
    for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found[f"{how}.tif"] = encoded(smooth, "tif", compression=how)
    return found


FILES = files()


@cases(40)
@given(name=st.sampled_from(sorted(FILES)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_is_one_line_or_the_same_pixels(
    tmp_path: Path, name: str, share: float
) -> None:
    root = emptied(tmp_path / "images")
    path = root / name
    path.write_bytes(FILES[name])
    (right,) = read(image_folder(root))
    path.write_bytes(FILES[name][: int(share * len(FILES[name]))])
    found = result_or_line(lambda: read(image_folder(root)), str(path))
    if found is not None:
        np.testing.assert_array_equal(found[0], right)


@cases(40)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_damaged_file_is_one_line_or_an_image(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    root = emptied(tmp_path / "images")
    (root / name).write_bytes(data.draw(damaged(FILES[name])))
    found = result_or_line(lambda: read(image_folder(root)), str(root / name))
    if found is not None:
        assert found[0].dtype == np.uint8


def test_an_avif_whose_pixels_are_gone_is_one_line(tmp_path: Path) -> None:
    """Pillow raises a RuntimeError there."""
    root = emptied(tmp_path / "images")
    before, mark, pixels = FILES["plain.avif"].partition(b"mdat")
    (root / "a.avif").write_bytes(before + mark + b"\xff" * 20 + pixels[20:])
    assert result_or_line(lambda: read(image_folder(root)), str(root / "a.avif")) is None


@cases(40)
@given(
    content=st.binary(max_size=300), magic=st.sampled_from(sorted(FILES)), kept=st.integers(0, 40)
)
def test_what_is_no_image_is_one_line(
    tmp_path: Path, content: bytes, magic: str, kept: int
) -> None:
    root = emptied(tmp_path / "images")
    (root / magic).write_bytes(FILES[magic][:kept] + content)
    found = result_or_line(lambda: read(image_folder(root)), str(root / magic))
    assert found is None or kept > 12


def arrays() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8), np.arange(5) % 2
    found = {}
    for name, write in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        file = BytesIO()
        write(file, images=images, labels=labels)  # type: ignore[operator]
        found[name] = file.getvalue()
    file = BytesIO()
    np.save(file, images)
    return found | {"images.npy": file.getvalue()}


ARRAYS = arrays()


@cases(40)
@given(name=st.sampled_from(sorted(ARRAYS)), data=st.data())
def test_damaged_arrays_are_one_line_or_images(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    root = emptied(tmp_path / "images")
    path = root / name

    def load() -> tuple[list[Pixels], Any]:
        source = npy(root) if name == "images.npy" else npz(path)
        return read(source), source.labels

    path.write_bytes(ARRAYS[name])
    right, labels = load()
    path.write_bytes(data.draw(damaged(ARRAYS[name])))
    found = result_or_line(load, str(path))
    # An archive has checksums; of a plain array nobody can know a pixel.
    if found is not None and name != "images.npy":
        assert len(found[0]) == len(right)
        assert all(np.array_equal(a, b) for a, b in zip(found[0], right, strict=True))
        assert found[1] is None or np.array_equal(found[1], labels)
