"""Files that torch pickles, read without running what is in them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import is_of_the_disk
from boss_core.io.weights import check_sums

# What a pickled array consists of, which torch does not count as harmless by itself: no more than
# numbers, their kind and their shape.
_ARRAYS = [
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]


def read_tensors(path: Path, needed: str) -> dict[str, Tensor]:
    """The tensors of a file by their names, of which nothing is executed.

    needed: what the file should be, for the InputError when it is not.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'}; {needed} needed"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle raises whatever its bytes happen to ask for
        if is_of_the_disk(error):
            raise
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks for {named[1]}" if named else type(error).__name__
        raise InputError(
            f"{path}: truncated, or not tensors only ({why}; nothing of it was executed);"
            f" {needed} needed"
        ) from error
    check_sums(path)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path}: no dictionary of tensors; {needed} needed")
    return content


@contextmanager
def arrays_only() -> Iterator[None]:
    """Inside, ``torch.load`` reads tensors and arrays and nothing else, whatever it is asked for:
    for a library that asks it to unpickle everything. It raises where a file holds more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
