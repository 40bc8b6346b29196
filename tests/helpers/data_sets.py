"""Small data sets in the files of the published ones, and what is read of a source."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from boss_core.data.images import ImageSource, image_shape, read_images

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(source: ImageSource) -> NDArray[np.uint8]:
    """All images of a source, (N, C, H, W)."""
    images = np.stack(list(read_images(source, image_shape(source))))
    assert len(images) == len(source)
    return images


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
