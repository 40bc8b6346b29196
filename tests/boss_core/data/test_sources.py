"""Kinds of storage: the same pixels and labels from each, and what each refuses."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from boss_core.data.arrays import npy, npz
from boss_core.data.folder import folder
from boss_core.data.images import ImageSource, image_shape, read_images
from boss_core.data.parquet import parquet
from boss_core.data.torchvision import torchvision
from boss_core.errors import InputError
from tests.helpers.checkout import SHARED, needs_shared
from tests.helpers.encoded import encode, noise

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(source: ImageSource) -> NDArray[np.uint8]:
    """All images of a source, (N, C, H, W)."""
    images = np.stack(list(read_images(source, image_shape(source))))
    assert len(images) == len(source)
    return images


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


def write_cifar10(
    root: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], patch: pytest.MonkeyPatch
) -> None:
    """Images (N, 3, 32, 32) in CIFAR-10's files, the last ten as the test split."""
    from torchvision.datasets import CIFAR10

    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    for name, rows in (("data_batch_1", slice(0, -10)), ("test_batch", slice(-10, None))):
        content = {"data": images[rows].reshape(-1, 3072), "labels": labels[rows].tolist()}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision knows the checksums of the real files.
    patch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    patch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    patch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})


def write_mnist(root: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Images (N, 28, 28) in MNIST's files, the last five as the test split."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, rows in (("train", slice(0, -5)), ("t10k", slice(-5, None))):
        part, targets = images[rows], labels[rows].astype(np.uint8)
        header = struct.pack(">4i", 0x00000803, len(part), 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + part.tobytes())
        header = struct.pack(">2i", 0x00000801, len(part))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + targets.tobytes())


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


def test_named_splits_of_torchvision_are_all_read(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    for part in ("labels", "images/dots", "images/lines"):
        (base / part).mkdir(parents=True)
    for index, split in enumerate(("test", "train", "val")):
        name = f"{('dots', 'lines')[index % 2]}/{index}.png"
        Image.new("RGB", (5, 4), (index, 0, 0)).save(base / "images" / name)
        (base / "labels" / f"{split}1.txt").write_text(f"{name}\n")
    source = torchvision("DTD", tmp_path)
    assert read(source)[:, 0, 0, 0].tolist() == [1, 2, 0]  # train, val, test
    assert source.labels is not None
    assert len(source.labels) == 3


def test_folder_with_classes(tmp_path: Path) -> None:
    for name, value in (("dog/b.png", 1), ("cat/a.jpg", 2), ("cat/c.png", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (value, 0, 255)).save(tmp_path / name)
    source = folder(tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]
    images = read(source)
    assert images.shape == (3, 3, 4, 6)
    assert images[2, :, 0, 0].tolist() == [1, 0, 255]


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "preview.png"):
        save(tmp_path / name)
    source = folder(tmp_path)
    assert source.labels is None
    said = "no labels: 1 image beside the class folders, as preview.png"
    assert source.remarks == (f"{tmp_path}: {said}",)
    save(tmp_path / "a.png")
    assert folder(tmp_path).remarks[0].endswith("2 images beside the class folders, as a.png")


def test_greyscale_folder_without_classes(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 9).save(tmp_path / "x.png")
    source = folder(tmp_path)
    assert source.labels is None
    assert (read(source) == np.full((1, 1, 4, 6), 9)).all()


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images in it; files ending in \.png"):
        folder(tmp_path)
    Image.new("RGB", (6, 4), (7, 0, 255)).save(tmp_path / "a.png")
    other = tmp_path / "b.png"
    Image.new("RGB", (5, 5)).save(other)
    with pytest.raises(InputError, match=r"b\.png: 5x5 pixels, but .*a\.png has 6x4"):
        image_shape(folder(tmp_path))
    other.write_bytes((tmp_path / "a.png").read_bytes()[:50])
    image_shape(folder(tmp_path))  # the header is whole
    with pytest.raises(InputError, match=r"b\.png: truncated or not an image"):
        read(folder(tmp_path))
    other.write_bytes(b"GIF?")
    with pytest.raises(InputError, match=r"b\.png: truncated or not an image"):
        image_shape(folder(tmp_path))


def save(path: Path, value: int = 0, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, kind)
    return path


def test_hidden_files_and_folders_are_no_classes(tmp_path: Path) -> None:
    for k, name in enumerate(("cat/a.png", "dog/b.png", "dog/deep/c.png")):
        save(tmp_path / name, k)
    save(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    save(tmp_path / "cat" / ".ipynb_checkpoints" / "a-checkpoint.png")
    (tmp_path / "dog" / "._b.png").write_bytes(b"of another system")
    for source in (folder(tmp_path), torchvision("ImageFolder", tmp_path)):
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 1]
        assert read(source)[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_hidden_parquet_files_are_left_out(tmp_path: Path) -> None:
    table = pa.table({"image": [encode(noise(1, (8, 8))[0], "PNG")]})
    for name in ("a.parquet", "b.PARQUET", ".ipynb_checkpoints/a.parquet", ".cache/a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name)
    assert len(parquet(tmp_path, "image", None)) == 2


def test_links_to_classes_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    save(elsewhere / "a.png", 1)
    save(elsewhere / "deep" / "b.png", 2)
    here.mkdir()
    (here / "cat").symlink_to(elsewhere)
    (here / "owl").symlink_to("cat")  # a link to a link, and the same images twice
    save(here / "dog" / "c.png", 3)
    (here / "dog" / "d.png").symlink_to(elsewhere / "a.png")
    source = folder(here)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert read(source)[:, 0, 0, 0].tolist() == [1, 2, 3, 1, 1, 2]
    (says,) = source.remarks
    assert "cat and others are links; DVC does not see when images behind it change: `dvc" in says


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png")
    link = tmp_path / "cat" / "again"
    link.symlink_to(tmp_path)
    with pytest.raises(InputError, match="cat/again: a symbolic link to a folder that it lies in"):
        folder(tmp_path)
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="cat/again: a symbolic link that leads nowhere"):
        folder(tmp_path)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(InputError, match="cat/again: a symbolic link that leads nowhere"):
        folder(tmp_path)


def test_no_image_vanishes_without_a_word(tmp_path: Path) -> None:
    for k, (suffix, kind) in enumerate(
        {".PNG": "PNG", ".tif": "TIFF", ".TIFF": "TIFF", ".gif": "GIF", ".jfif": "JPEG",
         ".bmp": "BMP", ".Jpg": "JPEG", ".webp": "WEBP", ".pgm": "PPM"}.items()
    ):  # fmt: skip
        save(tmp_path / f"{k}{suffix}", 10 * k, kind)
    source = folder(tmp_path)
    assert source.remarks == ()
    found = read(source)[:, :, 0, 0].astype(int)
    assert np.abs(found - 10 * np.arange(9)[:, None]).max() <= 2
    for name in ("notes.txt", "labels.csv", "a.json", "Thumbs.db"):
        (tmp_path / name).write_text("")
    assert len(folder(tmp_path)) == 9
    says = "4 files left out, no images by their names: Thumbs.db, a.json, labels.csv, ..."
    assert folder(tmp_path).remarks == (f"{tmp_path}: {says}",)
    (tmp_path / "photo.HEIC").write_bytes(b"")
    with pytest.raises(InputError, match=r"photo\.HEIC: images ending in \.heic are not read; "):
        folder(tmp_path)


def test_a_class_without_images_would_move_the_labels(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "dog" / "a.png")
    (tmp_path / "cow").mkdir()
    with pytest.raises(InputError, match="cow: no images in it, and every folder beside it is a"):
        folder(tmp_path)
    save(tmp_path / "a.png")  # no classes any more
    assert folder(tmp_path).labels is None
    with pytest.raises(InputError, match="images beside the folders; all in one named by class"):
        torchvision("ImageFolder", tmp_path)
    (tmp_path / "cow").rmdir()
    (tmp_path / "images.png").mkdir()  # a folder, whatever its name
    assert len(folder(tmp_path)) == 3


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


def test_many_identities_are_classes_of_a_large_set(tmp_path: Path) -> None:
    """Above 65,536 as long as there are as many images, in shards of fewer."""
    content = encode(noise(1, (2, 2))[0], "PNG")
    for shard in range(2):
        labels = np.arange(40_000) + 40_000 * shard
        table = pa.table({"image": [content] * 40_000, "label": labels})
        pq.write_table(table, tmp_path / f"{shard}.parquet")
    source = parquet(tmp_path, "image", "label")
    assert source.labels is not None
    assert source.labels.max() == 79_999


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"images\.npy: dtype float32; uint8 "),
        (np.zeros((8, 8), np.uint8), r"images\.npy: shape \(8, 8\); uint8 \(N, H, W\), "),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape \(4, 8, 8, 4\); .* C 1 or 3, needed"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\)"),
        (np.asfortranarray(np.zeros((4, 8, 8), np.uint8)), r"in Fortran's order; save np\."),
        (np.array([{}, {}]), "dtype object"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, images: NDArray, says: str) -> None:
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(InputError, match=says):
        npy(tmp_path)


def test_npy_files_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images\.npy: no such file; a folder with images\.npy"):
        npy(tmp_path)
    path = tmp_path / "images.npy"
    np.save(path, noise(4, (8, 8)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"truncated: 383 bytes; 384 needed for \(4, 8, 8\)"):
        npy(tmp_path)
    path.write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"images\.npy: truncated or not an \.npy array"):
        npy(tmp_path)
    path.write_bytes(whole)
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(InputError, match=r"labels\.npy: shape \(5,\) for 4 images; one label"):
        npy(tmp_path)
    (tmp_path / "labels.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"labels\.npy: truncated or not an array"):
        npy(tmp_path)


def test_npz_files_that_cannot_serve(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz: no such file; an \.npz file needed"):
        npz(path)
    np.savez(path, x=noise(4, (8, 8)), y=np.arange(4))
    with pytest.raises(InputError, match="no member images or arr_0; its members: x, y"):
        npz(path)
    np.savez(path, images=noise(4, (8, 8)).astype(float))
    with pytest.raises(InputError, match=r"a\.npz: images: dtype float64; uint8 "):
        npz(path)
    np.savez(path, noise(4, (8, 8)), np.arange(3))
    with pytest.raises(InputError, match=r"a\.npz: arr_1: shape \(3,\) for 4 images"):
        npz(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a\.npz: truncated or not an \.npz file"):
        npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_altered_npz_is_found_while_reading(tmp_path: Path, save) -> None:
    path = tmp_path / "a.npz"
    save(path, images=noise(200, (32, 32)))
    content = bytearray(path.read_bytes())
    content[150_000] ^= 255
    path.write_bytes(content)
    source = npz(path)
    with pytest.raises(InputError, match=r"a\.npz: images: truncated or altered"):
        read(source)


def test_parquet_files_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.parquet files in it; at least one needed"):
        parquet(tmp_path, "image", None)
    path = tmp_path / "a.parquet"
    with pytest.raises(InputError, match=r"a\.parquet: no such file or folder"):
        parquet(path, "image", None)
    encoded = [encode(image, "PNG") for image in noise(40, (9, 9, 3))]
    table = pa.table({"img": encoded, "label": [*range(39), None], "text": ["a"] * 40})
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"no column image; its columns: img, label, text$"):
        parquet(path, "image", None)
    with pytest.raises(InputError, match=r"no column y; .*label_column: null for none"):
        parquet(path, "img", "y")
    with pytest.raises(InputError, match="column text is string; encoded images, as bytes or"):
        parquet(path, "text", None)
    with pytest.raises(InputError, match=r"a\.parquet: column label: 1 empty; a label a row"):
        parquet(path, "img", "label")
    with pytest.raises(InputError, match="column text: dtype object; integer labels needed"):
        parquet(path, "img", "text")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"a\.parquet: truncated or not a Parquet file"):
        parquet(path, "img", None)
    path.write_bytes(whole[:200] + bytes(3000) + whole[3200:])
    source = parquet(path, "img", None)  # the footer is whole
    with pytest.raises(InputError, match=r"a\.parquet: .*truncated or not"):
        read(source)
    pq.write_table(pa.table({"img": [*encoded[:2], b"GIF?"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: row 2: truncated or not an image"):
        image_shape(parquet(path, "img", None))
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "b.png"}]}), path)
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "b.png"}], schema)
    pq.write_table(pa.table({"img": rows}), path)
    with pytest.raises(InputError, match="row 0: no bytes in column img; images inside the file"):
        image_shape(parquet(path, "img", None))
    pq.write_table(pa.table({"img": pa.array([], pa.binary())}), path)
    with pytest.raises(InputError, match=r"a\.parquet: no rows; at least one image needed"):
        parquet(path, "img", None)


def test_data_sets_of_torchvision_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar10: no data set of torchvision .*: CIFAR10, "):
        torchvision("cifar10", tmp_path)
    with pytest.raises(InputError, match=r"zzzz: no data set .* for example MNIST"):
        torchvision("zzzz", tmp_path)
    with pytest.raises(InputError, match="EMNIST: has no split train or trainval"):
        torchvision("EMNIST", tmp_path)
    with pytest.raises(InputError, match="CocoDetection: also takes annFile; a data set"):
        torchvision("CocoDetection", tmp_path)
    with pytest.raises(InputError, match="nowhere: no such folder; the root of torchvision's MNIS"):
        torchvision("MNIST", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"torchvision's MNIST cannot be read .Dataset not found"):
        torchvision("MNIST", tmp_path)
    with pytest.raises(InputError, match="no images in it; files ending in"):
        torchvision("ImageFolder", tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded


def test_jpegs_of_other_names_are_images(tmp_path: Path) -> None:
    save(tmp_path / "a.jpe", 10, "JPEG")
    views = [Image.new("L", (8, 8), value) for value in (20, 200)]
    views[0].save(tmp_path / "b.mpo", "MPO", save_all=True, append_images=views[1:])
    assert read(folder(tmp_path))[:, 0, 0, 0].tolist() == [10, 20]
