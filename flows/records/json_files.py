"""Reading and writing what passes between stages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from flows import paths

Json = dict[str, Any]


def write_json(path: Path, content: Json) -> None:
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Json:
    """The record in a file; InputError where there is none, as after a kill or by hand."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `dvc repro` makes it")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # of json, or of text that is none
        raise InputError(
            f"{path}: truncated or not JSON ({error}); remove it, and `dvc repro` brings it back"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: {type(content).__name__} found; a JSON object needed")
    return content


def frechet_name(record: Json) -> str:
    """The name of the Frechet distance in a record: ``fid`` or ``frechet_<extractor>``."""
    return frechet_of(record["extractor"])


def frechet_of(extractor: str) -> str:
    """As `boss_core.evaluation.extractors.frechet_name`, where torch is a second to import."""
    return "fid" if extractor == "inception" else f"frechet_{extractor}"


@dataclass(frozen=True)
class Images:
    """One half of the data: uint8 (N, C, H, W), memory-mapped, and labels (N,) or None."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


def read_images(split: str) -> Images:
    """``train`` or ``test``, as `prepare` wrote it."""
    labels = paths.DATA / f"{split}_labels.npy"
    return Images(
        np.load(paths.DATA / f"{split}.npy", mmap_mode="r"),
        np.load(labels) if labels.exists() else None,
    )
