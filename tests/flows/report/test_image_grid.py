"""Pictures of many images, and of what they differ by."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.report.image_grid import difference


def picture(path: Path, levels: list[list[int]], size: tuple[int, int] | None = None) -> Path:
    image = Image.fromarray(np.array(levels, dtype=np.uint8))
    (image if size is None else image.resize(size)).save(path)
    return path


def test_a_difference_is_dark_where_pixels_are_apart(tmp_path: Path) -> None:
    """By hand: 0, 16, 64 and 200 levels apart, whichever is the brighter."""
    one = picture(tmp_path / "one.png", [[10, 30], [0, 255]])
    other = picture(tmp_path / "other.png", [[10, 14], [64, 55]])
    found = difference(one, other)
    assert found is not None
    shown = np.asarray(Image.open(io.BytesIO(found[0])))
    assert shown.tolist() == [[255, 255 - 63], [0, 0]]
    assert found[1] == pytest.approx((0 + 16 + 64 + 200) / 4)


def test_pictures_of_other_sizes_or_colours_have_no_difference(tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png", [[10, 30], [0, 255]])
    assert difference(one, picture(tmp_path / "wide.png", [[1, 2]], (4, 2))) is None
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    assert difference(one, tmp_path / "colour.png") is None
