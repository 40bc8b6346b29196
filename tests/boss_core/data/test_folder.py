"""Folders of images: classes, links, hidden files, and what cannot serve."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boss_core.data.folder import folder
from boss_core.data.images import image_shape
from boss_core.data.torchvision import torchvision
from boss_core.errors import InputError
from tests.helpers.data_sets import read


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


def test_jpegs_of_other_names_are_images(tmp_path: Path) -> None:
    save(tmp_path / "a.jpe", 10, "JPEG")
    views = [Image.new("L", (8, 8), value) for value in (20, 200)]
    views[0].save(tmp_path / "b.mpo", "MPO", save_all=True, append_images=views[1:])
    assert read(folder(tmp_path))[:, 0, 0, 0].tolist() == [10, 20]
