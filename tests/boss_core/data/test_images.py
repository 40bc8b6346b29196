"""Images: the range of pixels, looking through a source, streaming, resizing, the split."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.transforms.functional as transforms
import yaml
from PIL import Image

from boss_core.data.images import (
    ImageSource,
    StoredImage,
    array_source,
    check_labels,
    digits,
    image_shape,
    read_images,
)
from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.pixels import from_uint8, to_uint8
from flows.config import Params, load_params
from flows.stages import prepare
from tests.helpers.checkout import ROOT
from tests.helpers.encoded import encode, noise

# Of the split of the digits before images were streamed, seed 0.
DIGITS = {
    "card.json": "bfc4e65e9ec6db6efdacc96cfa0892bee644f6f973918c71a91c07c594b194fc",
    "test.npy": "1d29136c3c21ef2fe8595f933e8df4b67ef3e7bf0fe7d717dec978308e523775",
    "test_labels.npy": "657cb080431e9a821180cff032d65292554f6a22e1b141a1ca95c95792ccf37e",
    "train.npy": "35ef38daef32d58719dfa98893217de2b17f03ec1b8542e6818f803ee209387c",
    "train_labels.npy": "90833799c38451839c453c744dfa8b4d52391e4cc62e3590c94dca7dd991c35d",
}


def source_of(*images: Image.Image) -> ImageSource:
    """A source whose images may have any size and mode."""

    def stored() -> Iterator[StoredImage]:
        for index, image in enumerate(images):
            yield StoredImage(f"image {index}", partial(Image.Image.copy, image))

    return ImageSource(len(images), None, stored)


def parameters(folder: Path, **data: Any) -> Params:
    """The project's parameters with another block ``data``, as a params.yaml in a folder."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= data
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return load_params(folder / "params.yaml")


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


def test_the_split_of_the_digits_is_as_it_always_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare.main(parameters(tmp_path))
    assert {path.name: sha256(path) for path in Path("data").iterdir()} == DIGITS


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stream_in_order(threads: int, channels: int) -> None:
    images = noise(75, (channels, 5, 4))  # neither a multiple of a batch nor of the threads
    source = array_source(images, None)
    assert len(source) == 75
    assert image_shape(source) == (channels, 5, 4)
    assert np.array_equal(list(read_images(source, (channels, 5, 4), threads)), images)


def test_few_images_are_in_memory_at_a_time() -> None:
    taken = 0

    def stored() -> Iterator[StoredImage]:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield StoredImage(str(index), partial(Image.new, "L", (2, 2)))

    ahead = []
    for done, _ in enumerate(read_images(ImageSource(1000, None, stored), (1, 2, 2), 3)):
        ahead.append(taken - done)
    assert max(ahead) <= 16 * 4  # as the docstring says


def test_greyscale_only_when_all_are() -> None:
    grey, colour = Image.new("L", (3, 2), 9), Image.new("RGB", (3, 2), (1, 2, 3))
    assert image_shape(source_of(grey, grey)) == (1, 2, 3)
    mixed = source_of(grey, colour)
    assert image_shape(mixed) == (3, 2, 3)
    pixels = list(read_images(mixed, (3, 2, 3)))
    assert pixels[0][:, 1, 2].tolist() == [9, 9, 9]
    assert pixels[1][:, 1, 2].tolist() == [1, 2, 3]


def test_mixed_sizes_need_an_image_size() -> None:
    source = source_of(Image.new("L", (6, 4)), Image.new("L", (5, 5)))
    with pytest.raises(InputError, match="image 1: 5x5 pixels, but image 0 has 6x4; images of one"):
        image_shape(source)
    assert image_shape(source, 3) == (1, 3, 3)
    assert [pixels.shape for pixels in read_images(source, (1, 3, 3))] == [(1, 3, 3)] * 2


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (24, 24), (8, 12)])
def test_resizing_is_a_centre_crop_and_lanczos(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(1, (3, size[1], size[0]))[0].transpose(1, 2, 0))
    (pixels,) = read_images(source_of(image), (3, 8, 8))
    square = transforms.center_crop(image, [min(size)] * 2)
    expected = transforms.resize(square, [8, 8], transforms.InterpolationMode.LANCZOS)
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    (pixels,) = read_images(source_of(Image.fromarray(board.astype(np.uint8))), (1, 8, 8))
    assert abs(pixels.astype(int) - 127).max() <= 2


def test_labels_that_cannot_serve() -> None:
    assert check_labels(np.array([2, 0], np.uint8), 2, "here").dtype == np.int64
    with pytest.raises(InputError, match=r"here: shape \(3,\) for 2 images"):
        check_labels([0, 1, 2], 2, "here")
    with pytest.raises(InputError, match="here: dtype float64; integer labels needed"):
        check_labels([0.0, 1.0], 2, "here")
    with pytest.raises(InputError, match="here: label -1 found; labels from 0 needed"):
        check_labels([0, -1], 2, "here")


def test_every_image_comes_to_its_shuffled_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = noise(90, (7, 6, 3)), np.arange(90) % 4
    (tmp_path / "mine").mkdir()
    np.save("mine/images.npy", images)
    np.save("mine/labels.npy", labels)
    prepare.main(parameters(tmp_path, source="npy", path="mine", test_fraction=0.2))
    order = np.random.default_rng(0).permutation(90)
    for split, rows in (("test", order[:18]), ("train", order[18:])):
        expected = images[rows].transpose(0, 3, 1, 2)
        assert np.array_equal(np.load(f"data/{split}.npy"), expected)
        assert np.array_equal(np.load(f"data/{split}_labels.npy"), labels[rows])


def test_an_unreadable_image_leaves_the_data_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare.main(parameters(tmp_path))
    (tmp_path / "mine").mkdir()
    for index, image in enumerate(noise(40, (9, 9, 3))):
        Path(f"mine/{index:02}.png").write_bytes(
            encode(image, "PNG")[: 99 if index == 30 else None]
        )
    with pytest.raises(InputError, match=r"mine/30\.png: truncated or not an image"):
        prepare.main(parameters(tmp_path, source="folder", path="mine"))
    assert {path.name: sha256(path) for path in Path("data").iterdir()} == DIGITS
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_shows_before_any_image_is_read(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")

    def stored() -> Iterator[StoredImage]:
        raise AssertionError("read")

    try:
        splits = {"test": np.arange(10), "train": np.arange(10, 100)}
        with pytest.raises(OSError, match="No space left") as caught:
            prepare.write_splits(tmp_path, ImageSource(100, None, stored), (3, 64, 64), splits)
        assert caught.value.filename == str(tmp_path / "train.npy")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # still mapped


@pytest.mark.parametrize(
    ("source", "most"),
    [("npy", 60e6), ("npz", 60e6), ("parquet", 100e6)],  # bytes; pyarrow's own code among them
)
def test_memory_does_not_grow_with_the_data(source: str, most: float, tmp_path: Path) -> None:
    """4,000 images of 128x128, 197 MB as they are stored and again as they are written."""
    path = tmp_path / "mine"
    path.mkdir()
    images = np.concatenate([noise(100, (128, 128, 3))] * 40)
    if source == "parquet":
        bmp = [encode(image, "BMP") for image in images[:100]] * 40  # stored without compression
        table = pa.table({"image": [{"bytes": b, "path": None} for b in bmp]})
        path /= "one_row_group.parquet"
        # Pages of 100 rows: a page is the least that can be read.
        options = {"use_dictionary": False, "write_batch_size": 100}
        pq.write_table(table, path, compression="none", **options)
        assert pq.ParquetFile(path).num_row_groups == 1
    elif source == "npz":
        path /= "images.npz"
        np.savez(path, images=images)
    else:
        np.save(path / "images.npy", images)
    parameters(tmp_path, source=source, path=str(path), label_column=None)
    # Not getrusage's peak, which a child process takes over from the one that started it.
    code = (
        "import re, pyarrow.parquet\n"
        "from flows.config import load_params\n"
        "from flows.stages.prepare import main\n"
        "def kilobytes(name):\n"
        "    return int(re.search(name + r':\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = kilobytes('VmRSS')\n"
        "main(load_params())\n"
        "print('grown by', (kilobytes('VmHWM') - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("grown by")[1]) < most
    assert np.load(tmp_path / "data" / "train.npy", mmap_mode="r").shape == (3400, 3, 128, 128)
