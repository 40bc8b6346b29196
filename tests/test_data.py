"""Images: the range of pixels, folders, and the digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boss_core.data import digits, find_images
from boss_core.errors import InputError
from boss_core.pixels import from_uint8, to_uint8


def save(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)
    return path


def test_every_pixel_survives_and_rounding_is_to_the_nearest() -> None:
    pixels = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)
    near = torch.tensor([-1.2, -1.0, (127.6 / 127.5) - 1, (100.4 / 127.5) - 1, 1.0, 3.0])
    assert to_uint8(near).tolist() == [0, 0, 128, 100, 255, 255]  # truncation would say 127


def test_digits() -> None:
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.uint8
    assert images.min() == 0
    assert images.max() == 255
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_folder_with_classes(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "b.png", value=1)
    save(tmp_path / "cat" / "a.jpg", value=2)
    save(tmp_path / "cat" / "c.png", value=3)
    folder = find_images(tmp_path)
    assert folder.shape == (3, 4, 6)
    assert folder.labels is not None
    assert folder.labels.tolist() == [0, 0, 1]
    assert folder.read(2)[:, 0, 0].tolist() == [1, 0, 255]


def test_greyscale_folder_without_classes(tmp_path: Path) -> None:
    save(tmp_path / "x.png", mode="L", value=9)
    folder = find_images(tmp_path)
    assert folder.shape == (1, 4, 6)
    assert folder.labels is None
    assert (folder.read(0) == 9).all()


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images in it; files ending in \.png"):
        find_images(tmp_path)
    save(tmp_path / "a.png")
    other = save(tmp_path / "b.png", size=(5, 5))
    with pytest.raises(InputError, match=r"b\.png: 5x5 pixels, but .*a\.png has 6x4"):
        find_images(tmp_path)
    other.write_bytes((tmp_path / "a.png").read_bytes()[:50])
    folder = find_images(tmp_path)  # the header is whole
    with pytest.raises(InputError, match=r"b\.png: truncated or not an image"):
        folder.read(1)
    other.write_bytes(b"GIF?")
    with pytest.raises(InputError, match=r"b\.png: truncated or not an image"):
        find_images(tmp_path)
