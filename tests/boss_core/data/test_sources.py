"""All kinds of storage: the same pixels and labels from each."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from boss_core.data.arrays import npy, npz
from boss_core.data.folder import folder
from boss_core.data.parquet import parquet
from boss_core.data.torchvision import torchvision
from boss_core.errors import InputError
from tests.helpers.checkout import SHARED, needs_shared
from tests.helpers.data_sets import Labelled, read, write_cifar10, write_mnist
from tests.helpers.encoded import encode, noise


def random_images() -> Labelled:
    return noise(60, (32, 32, 3)), np.random.default_rng(1).integers(0, 10, 60)


def cifar10() -> Labelled:
    folder = SHARED / "data" / "cifar10"
    with Image.open(folder / "train_000.webp") as strip:
        images = np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3)[:60]
    return images, np.load(folder / "train_labels.npy")[:60].astype(np.int64)


@pytest.mark.parametrize("make", [random_images, pytest.param(cifar10, marks=needs_shared)])
def test_all_kinds_of_storage_give_the_same_images(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = make()
    expected = images.transpose(0, 3, 1, 2)

    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels.astype(np.uint8))
    np.savez(tmp_path / "stored.npz", images=expected, labels=labels)
    np.savez_compressed(tmp_path / "compressed.npz", images, labels)
    encoded = [encode(image, "PNG") for image in images]
    (tmp_path / "shards").mkdir()
    for shard, rows in enumerate((slice(0, 25), slice(25, 60))):
        table = pa.table(
            {
                "id": list(range(60))[rows],
                "img": [{"bytes": b, "path": "a.png"} for b in encoded[rows]],
                "label": labels[rows],
            }
        )
        name = f"train-{shard:05}-of-00002.parquet"
        pq.write_table(table, tmp_path / "shards" / name, row_group_size=10)
    pq.write_table(pa.table({"image": encoded, "y": labels}), tmp_path / "raw.parquet")
    for index, content in enumerate(encoded):
        path = tmp_path / "classes" / f"class{labels[index]}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_cifar10(tmp_path / "root", expected, labels, monkeypatch)

    for source in (
        npy(tmp_path),
        npz(tmp_path / "stored.npz"),
        npz(tmp_path / "compressed.npz"),
        parquet(tmp_path / "shards", "img", "label"),
        parquet(tmp_path / "raw.parquet", "image", "y"),
        torchvision("CIFAR10", tmp_path / "root"),
    ):
        assert np.array_equal(read(source), expected)
        assert source.labels is not None
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == labels.tolist()
    by_class = np.argsort(labels, kind="stable")
    present = np.unique(labels, return_inverse=True)[1]  # folders number the classes they have
    for source in (folder(tmp_path / "classes"), torchvision("ImageFolder", tmp_path / "classes")):
        assert np.array_equal(read(source), expected[by_class])
        assert source.labels is not None
        assert source.labels.tolist() == present[by_class].tolist()


def test_greyscale_is_one_channel_everywhere(tmp_path: Path) -> None:
    images, labels = noise(20, (28, 28)), np.arange(20) % 3
    write_mnist(tmp_path, images, labels)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "a.npz", images=images[:, :, :, None])
    table = pa.table({"image": [encode(image, "PNG") for image in images]})
    pq.write_table(table, tmp_path / "a.parquet")
    mnist = torchvision("MNIST", tmp_path)
    assert mnist.labels is not None
    assert mnist.labels.tolist() == labels.tolist()
    for source in (
        mnist,
        npy(tmp_path),
        npz(tmp_path / "a.npz"),
        parquet(tmp_path / "a.parquet", "image", None),
    ):
        assert np.array_equal(read(source), images[:, None])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full(8, 2**63 + 5, np.uint64), f"label {2**63 + 5} found; classes numbered from 0"),
        (np.where(np.arange(8) % 2, 7, 2_000_000_000), "label 2000000000 found; classes numbered"),
        (np.arange(8) - 1, "label -1 found; labels from 0 needed"),
        (np.arange(8) / 2, "dtype float64; integer labels needed"),
        (np.full(8, np.nan), "dtype float64; integer labels needed"),
        (np.arange(8) > 3, "dtype bool; integer labels needed"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.dtype}",
)
def test_labels_that_are_no_classes_in_every_source(
    labels: NDArray, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(8, (32, 32, 3))
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    np.savez(tmp_path / "a.npz", images, labels)
    table = pa.table({"image": [encode(image, "PNG") for image in images], "label": labels})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"labels\.npy: {says}"):
        npy(tmp_path)
    with pytest.raises(InputError, match=rf"a\.npz: arr_1: {says}"):
        npz(tmp_path / "a.npz")
    with pytest.raises(InputError, match=rf"a\.parquet: column label: {says}"):
        parquet(tmp_path / "a.parquet", "image", "label")
    if labels.dtype.kind in "iu":  # targets of another kind are none of classes
        write_cifar10(tmp_path / "root", noise(18, (3, 32, 32)), np.resize(labels, 18), monkeypatch)
        with pytest.raises(InputError, match=f"CIFAR10: targets: {says}"):
            torchvision("CIFAR10", tmp_path / "root")
