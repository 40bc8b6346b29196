"""Data sets of torchvision: their splits, and what cannot serve."""

from pathlib import Path

import pytest
from PIL import Image

from boss_core.data.torchvision import torchvision
from boss_core.errors import InputError
from tests.helpers.data_sets import read


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
