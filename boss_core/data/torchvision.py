"""The data sets of torchvision, from files that are already there."""

import difflib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.data.folder import folder
from boss_core.data.images import ImageSource, StoredImage, check_labels
from boss_core.errors import InputError


def torchvision(name: str, root: Path) -> ImageSource:
    """All splits of ``torchvision.datasets.<name>`` in the folder ``root``, one after the other.

    Labels are the targets where these are integers. Nothing is downloaded. Raises InputError for
    an unknown class, one that takes more than a root, ``train`` and ``split``, and files that
    torchvision does not find or does not accept.
    """
    from torchvision import datasets

    constructor = _find(name)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; the root of torchvision's {name} needed")
    if constructor is datasets.ImageFolder:
        return _image_folder(root)
    parts = _splits(constructor, name, root)
    _check_classes(parts, root)
    counts = [len(part) for part in parts]
    if not sum(counts):
        raise InputError(f"{root}: no images of torchvision's {name} in it")
    where = f"{root}: {name}: targets"
    targets = [_targets(part) for part in parts]
    found = [
        check_labels(labels, len(labels), where, images=sum(counts))
        for labels in targets
        if labels is not None
    ]
    labels = np.concatenate(found) if len(found) == len(parts) else None

    def images() -> Iterator[StoredImage]:
        index = 0
        for part, count in zip(parts, counts, strict=True):
            for k in range(count):
                where = f"{root}: {name}: image {index}"
                yield StoredImage(where, partial(_image, _item(part, k, where)[0]))
                index += 1

    return ImageSource(sum(counts), labels, images)


def _image_folder(root: Path) -> ImageSource:
    """The same layout as that of a folder. torchvision's own takes hidden folders for classes,
    makes 16-bit images white, and turns none as its EXIF orientation says."""
    source = folder(root)
    if source.labels is None:
        raise InputError(f"{root}: images beside the folders; all in one named by class needed")
    return source


def _find(name: str) -> Any:
    from torchvision import datasets

    known = {n.lower(): n for n in datasets.__all__ if "root" in _parameters(getattr(datasets, n))}
    if name in known.values():
        return getattr(datasets, name)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = ", ".join(known[n] for n in near) or "for example MNIST, CIFAR10 or SVHN"
    raise InputError(f"{name}: no data set of torchvision with a root; close to it: {hint}")


def _parameters(constructor: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(constructor).parameters)


def _splits(constructor: Any, name: str, root: Path) -> list[Any]:
    parameters = _parameters(constructor)
    needed = {
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    } - {"root", "train", "split"}
    if {"train", "split"} <= parameters.keys():  # a variant of the data set, as EMNIST's
        needed.add("split")
    if needed:
        raise InputError(
            f"{name}: also takes {', '.join(sorted(needed))}; a data set of torchvision that takes"
            " only root, train and split needed"
        )
    common = {"download": False} if "download" in parameters else {}
    try:
        if "train" in parameters:
            return [constructor(root, train=train, **common) for train in (True, False)]
        if "split" in parameters:
            return _named_splits(constructor, name, root, common)
        return [constructor(root, **common)]
    except InputError:
        raise
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{root}: torchvision's {name} cannot be read ({message})") from error


def _check_classes(parts: list[Any], root: Path) -> None:
    """A class for a hidden folder would move the labels of all others."""
    for part in parts:
        for name in getattr(part, "classes", None) or ():
            if str(name).startswith("."):
                raise InputError(f"{root}: {name} is taken for a class; remove it")


def _named_splits(constructor: Any, name: str, root: Path, common: dict[str, bool]) -> list[Any]:
    """The splits that do not overlap, by the names that torchvision's data sets give them."""

    def first(*names: str) -> list[Any]:
        for split in names:
            try:
                return [constructor(root, split=split, **common)]
            except ValueError:  # not a name of this data set
                continue
        return []

    train = first("train", "trainval")
    if not train:
        raise InputError(f"{name}: has no split train or trainval; another data set needed")
    return [*train, *first("val", "valid"), *first("test")]


def _targets(dataset: Any) -> NDArray[np.integer] | None:
    """The labels of a data set: from its list of them, or else from the items, one by one."""
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            array = np.asarray(found)
            if array.shape == (len(dataset),) and np.issubdtype(array.dtype, np.integer):
                return array
    labels = []
    for index in range(len(dataset)):
        target = _item(dataset, index, f"{type(dataset).__name__}: image {index}")[1]
        if not isinstance(target, int | np.integer):
            return None
        labels.append(int(target))
    return np.array(labels) if labels else np.empty(0, np.int64)


def _item(dataset: Any, index: int, name: str) -> Any:
    try:
        return dataset[index]
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: truncated or not an image ({error})") from error


def _image(found: Any) -> Image.Image:
    if not isinstance(found, Image.Image):
        raise InputError(f"{type(found).__name__} found; a data set of images needed")
    return found
