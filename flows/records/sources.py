"""The images that params.yaml names."""

from pathlib import Path

from boss_core.data.arrays import npy, npz
from boss_core.data.folder import folder
from boss_core.data.images import ImageSource, array_source, digits
from boss_core.data.parquet import parquet
from boss_core.data.torchvision import torchvision
from boss_core.errors import InputError
from flows.config import Data


def open_source(data: Data) -> ImageSource:
    """Find the images and their labels; reads no pixels."""
    path = Path(data.path)
    match data.source:
        case "digits":
            return array_source(*digits())
        case "folder":
            return folder(path)
        case "npy":
            return npy(path)
        case "npz":
            return npz(path)
        case "parquet":
            return parquet(path, data.image_column, data.label_column)
        case "none":
            raise InputError("params.yaml: data.source: none; images needed to read any")
        case "torchvision":
            assert data.dataset is not None  # the schema's
            return torchvision(data.dataset, path)


def source_name(data: Data) -> str:
    """What to call the data in records."""
    match data.source:
        case "digits" | "none":
            return data.source
        case "torchvision":
            return f"{data.path}: {data.dataset}"
        case _:
            return data.path
