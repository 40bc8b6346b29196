"""The cost matrix as a file: ``results/cost.npz``."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.files import replacing

_FIELDS = ("cost", "timesteps", "standard_error", "group_gram", "group_norm")


def write_cost_matrix(path: Path, matrix: CostMatrix, teacher_hash: str) -> None:
    """Write a matrix and the hash of the weights that it was measured on, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            **{name: getattr(matrix, name) for name in _FIELDS},
            samples=matrix.samples,
            group_cost=matrix.group_cost,  # for those who read the file without this package
            teacher_hash=teacher_hash,
        )


def read_cost_matrix(path: Path) -> tuple[CostMatrix, str]:
    """What `write_cost_matrix` wrote: the matrix and the hash. InputError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _FIELDS}
            return CostMatrix(samples=int(file["samples"]), **arrays), str(file["teacher_hash"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: not a cost matrix ({error}); `dvc repro` makes it") from error
