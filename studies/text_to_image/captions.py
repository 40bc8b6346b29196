"""CIFAR-10 with captions made from its labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEMPLATES = (
    "a photo of a {}",
    "a small photo of a {}",
    "a picture of one {}",
    "there is a {} here",
    "{}",
)
SIDE = 32


def caption(label: int, template: int) -> str:
    """What a picture of that class is called."""
    return TEMPLATES[template].format(CLASSES[label])


def every_caption() -> list[str]:
    """All captions, class by class."""
    return [caption(c, k) for c in range(len(CLASSES)) for k in range(len(TEMPLATES))]


def prompts(count: int) -> tuple[list[str], NDArray[np.int64]]:
    """So many prompts with their labels: the classes in turn, and their captions in turn."""
    numbers = np.arange(count)
    labels = numbers % len(CLASSES)
    templates = numbers // len(CLASSES) % len(TEMPLATES)
    return [caption(int(c), int(k)) for c, k in zip(labels, templates, strict=True)], labels


def read_cifar10(
    folder: Path, split: str, most: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images, (N, 3, 32, 32), and labels of a folder of WebP strips, or of the first of them.

    split: ``train`` or ``test``. most: images; fewer where the folder holds fewer strips.
    InputError where there are none, or other ones than CIFAR-10's.
    """
    strips = sorted(folder.glob(f"{split}_*.webp"))
    if not strips:
        raise InputError(f"{folder}: no {split}_*.webp; strips of CIFAR-10 images needed")
    first = [int(path.stem.rsplit("_", 1)[1]) for path in strips]
    if first != list(range(len(strips))):
        raise InputError(f"{folder}: {split} strips {first[:8]}...; those from 000 on needed")
    parts: list[NDArray[np.uint8]] = []
    for path in strips:
        if most is not None and sum(map(len, parts)) >= most:
            break
        strip = np.asarray(Image.open(path).convert("RGB"))
        if strip.size % (SIDE * SIDE * 3):
            raise InputError(f"{path}: {strip.shape}; images of {SIDE} x {SIDE} pixels needed")
        parts.append(strip.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2))
    images = np.concatenate(parts)[:most]
    labels = np.load(folder / f"{split}_labels.npy")[: len(images)].astype(np.int64)
    return np.ascontiguousarray(images), labels


def grid(images: NDArray[np.uint8], columns: int, *, scale: int = 2) -> Image.Image:
    """Images (N, 3, H, W) in rows of so many, with a pixel of white between, enlarged."""
    return _sheet([images[k : k + columns] for k in range(0, len(images), columns)], scale)


def _sheet(rows: Sequence[NDArray[np.uint8]], scale: int) -> Image.Image:
    height, width = rows[0].shape[2:]
    columns = max(map(len, rows))
    sheet = np.full(((height + 1) * len(rows), (width + 1) * columns, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + 1), c * (width + 1)
            sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    shape = (sheet.shape[1] * scale, sheet.shape[0] * scale)
    return Image.fromarray(sheet).resize(shape, Image.Resampling.NEAREST)
